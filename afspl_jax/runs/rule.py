"""What a rule of several settings is, and what rules ask about an experiment."""

from collections.abc import Callable
from typing import NamedTuple

from afspl_jax.config import experiment as settings
from afspl_jax.federation import strategies
from afspl_jax.federation.contracts import POISSON
from afspl_jax.federation.protocol.uplink import SAME_ROWS


class Case(NamedTuple):
  """An experiment, with what its rules ask about."""

  experiment: settings.Experiment
  clients: int  # that train: all but the newcomers
  strategy: strategies.Strategy
  data: settings.Data
  prompter: settings.Prompter
  optim: settings.Optim
  fed: settings.Fed
  uplink: settings.Uplink
  privacy: settings.Privacy
  secure: settings.Secure
  attack: settings.Attack


Condition = Callable[[Case], bool]


class Rule(NamedTuple):
  """A rule of several settings."""

  field: str  # that an error names, with its value
  holds: Condition
  expected: str  # what an error says; `{c.clients}` and so on are filled in
  when: Condition = lambda c: True  # the rule applies


def where(when: Condition, *rules: Rule) -> tuple[Rule, ...]:
  """Rules that apply under one condition."""
  return tuple(rule._replace(when=when) for rule in rules)


def poisson(c: Case) -> bool:
  """Whether chance alone decides who takes part."""
  return c.fed.selection == POISSON


def private(c: Case) -> bool:
  """Whether updates get noise."""
  return c.privacy.dp != "none"


def secure(c: Case) -> bool:
  """Whether the server sees sums alone."""
  return c.secure.aggregation


def attacked(c: Case) -> bool:
  """Whether some clients are malicious."""
  return c.attack.kind != "none"


def same_rows(c: Case) -> bool:
  """Whether all clients of a round send the same rows."""
  return c.uplink.select in SAME_ROWS


def has_controls(c: Case) -> bool:
  """Whether the strategy corrects gradients."""
  return isinstance(c.strategy, strategies.Controlled)


def mean_suffices(c: Case) -> bool:
  """Whether the strategy needs the mean of the updates alone."""
  return strategies.of_mean(c.strategy)


def countable_selection(c: Case) -> bool:
  """Whether the chance of a client to take part is known."""
  everyone = c.fed.selection == "uniform" and c.fed.clients_per_round == c.clients
  return everyone or c.fed.selection in (POISSON, "round_robin")
