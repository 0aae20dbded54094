"""What a rule of several settings is."""

from collections.abc import Callable
from typing import NamedTuple

from afspl_jax.config import experiment as settings
from afspl_jax.federation import strategies


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
