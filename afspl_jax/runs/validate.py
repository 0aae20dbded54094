"""Which settings fit together, checked before anything is loaded.

Rules of one setting stand on its field in config/; rules of several are listed here.
"""

import operator

from afspl_jax.config import experiment as settings
from afspl_jax.config.fields import check_values
from afspl_jax.config.setting import require
from afspl_jax.data.example_cap import check_cap
from afspl_jax.evaluation.generate import decoding_settings
from afspl_jax.federation import strategies
from afspl_jax.federation.client.malicious import num_malicious
from afspl_jax.federation.contracts import POISSON
from afspl_jax.federation.privacy import budget
from afspl_jax.federation.protocol.uplink import SAME_ROWS
from afspl_jax.federation.secure import terms
from afspl_jax.federation.secure.graph import FEWEST
from afspl_jax.models.prompter.local import is_local, local_patterns
from afspl_jax.models.prompter.pool import ROUTING_LEAVES
from afspl_jax.runs.rule import Case, Rule, where


def _poisson(c: Case) -> bool:
  return c.fed.selection == POISSON


def _private(c: Case) -> bool:
  return c.privacy.dp != "none"


def _secure(c: Case) -> bool:
  return c.secure.aggregation


def _attacked(c: Case) -> bool:
  return c.attack.kind != "none"


def _same_rows(c: Case) -> bool:
  return c.uplink.select in SAME_ROWS


def _has_controls(c: Case) -> bool:
  return isinstance(c.strategy, strategies.Controlled)


def _mean_suffices(c: Case) -> bool:
  return strategies.of_mean(c.strategy)


def _countable_selection(c: Case) -> bool:
  everyone = c.fed.selection == "uniform" and c.fed.clients_per_round == c.clients
  return everyone or c.fed.selection in (POISSON, "round_robin")


_ROWS = " or ".join(SAME_ROWS)

_SELECTION = (
  Rule(
    "fed.clients_per_round",
    lambda c: c.fed.clients_per_round <= c.clients,
    "at most data.num_clients without fed.newcomers, {c.clients}",
  ),
  Rule(
    "fed.strategy",
    lambda c: c.fed.strategy == "fedavg",
    "fedavg with fed.share=none, where there is nothing to average",
    when=lambda c: c.fed.share == "none",
  ),
  Rule(
    "fed.finetune",
    lambda c: c.fed.finetune == 0,
    "0 with fed.share=none, where every client trains alone, with privacy.example_clip, whose"
    " budget is of the rounds, and with a strategy that has controls",
    when=lambda c: c.fed.share == "none" or c.privacy.example_clip > 0 or _has_controls(c),
  ),
  Rule(
    "uplink.select",
    lambda c: c.uplink.select == "dense",
    "dense with fed.strategy={c.fed.strategy}, whose controls count every gradient: a row that is"
    " sent later would count twice",
    when=_has_controls,
  ),
  Rule(
    "secure.neighbours",
    lambda c: c.secure.neighbours == 0 or 2 <= c.secure.neighbours < c.clients,
    "0, or at least 2 and less than the number of clients, {c.clients}",
  ),
)

_ATTACK = (
  Rule(
    "attack.share",
    lambda c: num_malicious(c.attack, c.clients) == 0,
    "0 with attack.kind=none",
    when=lambda c: not _attacked(c),
  ),
  Rule(
    "attack.share",
    lambda c: num_malicious(c.attack, c.clients) > 0,
    "a share of at least one of {c.clients} clients with attack.kind={c.attack.kind}",
    when=_attacked,
  ),
  Rule(
    "attack.kind",
    lambda c: not _attacked(c),
    "none with secure.aggregation, where a malicious client would not bound its update",
    when=_secure,
  ),
)

_PRIVACY = (
  Rule(
    "privacy.example_epsilon",
    lambda c: c.privacy.example_epsilon == 0 or c.privacy.example_clip > 0,
    "0 without privacy.example_clip",
  ),
  Rule(
    "privacy.delta",
    lambda c: c.privacy.delta <= 1 / c.data.num_clients / 2,
    "well below 1 / data.num_clients, at most half of 1 / {c.data.num_clients}",
  ),
  Rule(
    "fed.selection",
    lambda c: not _poisson(c),
    "another selection with privacy.dp=none: the secret draws of poisson cannot be repeated",
    when=lambda c: not _private(c),
  ),
  *where(
    _private,
    Rule(
      "privacy.noise",
      lambda c: c.privacy.noise > 0 or c.privacy.epsilon > 0,
      "a number above 0, or a privacy.epsilon to choose it by",
    ),
    Rule(
      "uplink.select",
      _same_rows,
      f"{_ROWS} with privacy.dp, since a choice by energy reveals data",
    ),
    Rule("fed.share", lambda c: c.fed.share == "all", "all with privacy.dp"),
    Rule(
      "fed.strategy",
      _mean_suffices,
      "a strategy that needs only the mean of the updates with privacy.dp",
    ),
    Rule(
      "fed.selection",
      _countable_selection,
      "poisson, round_robin, or uniform of all clients with privacy.dp: the others depend on"
      " private values, or their privacy cannot be counted in advance",
    ),
    Rule(
      "fed.min_replies",
      lambda c: c.fed.min_replies == 1 or not _poisson(c),
      "1 with fed.selection=poisson: otherwise small rounds fail, and this reveals who took part",
    ),
  ),
  *where(
    lambda c: c.privacy.dp == "local",
    Rule(
      "privacy.clipping", lambda c: c.privacy.clipping == "fixed", "fixed with privacy.dp=local"
    ),
    Rule(
      "fed.selection",
      lambda c: not _poisson(c),
      "another selection with privacy.dp=local: the server sees who takes part",
    ),
  ),
)

_EXAMPLE_PRIVACY = where(
  lambda c: c.privacy.example_clip > 0,
  Rule(
    "privacy.example_noise", lambda c: c.privacy.example_noise > 0, "a number above 0 with DP-SGD"
  ),
  Rule(
    "optim.balance", lambda c: c.optim.balance == 0, "0 with privacy.example_clip: mixes examples"
  ),
  Rule(
    "optim.contrast", lambda c: c.optim.contrast == 0, "0 with privacy.example_clip: mixes examples"
  ),
  Rule(
    "fed.strategy",
    lambda c: not (_has_controls(c) or strategies.of_losses(c.strategy)),
    "one without controls and losses with privacy.example_clip, since these travel without noise",
  ),
  Rule(
    "fed.selection",
    lambda c: c.fed.selection != "power_of_choice",
    "another selection with privacy.example_clip, since losses are not sent",
  ),
)

_SECURE = where(
  _secure,
  Rule(
    "fed.clients_per_round",
    lambda c: c.fed.clients_per_round >= FEWEST,
    f"at least {FEWEST} with secure.aggregation: each of two could compute the other's update",
  ),
  Rule(
    "uplink.select",
    _same_rows,
    f"{_ROWS} with secure.aggregation, where all clients send the same rows",
  ),
  Rule(
    "fed.strategy",
    _mean_suffices,
    "a strategy that needs only the mean of the updates with secure.aggregation",
  ),
  Rule("fed.share", lambda c: c.fed.share == "all", "all with secure.aggregation"),
  Rule(
    "fed.selection",
    lambda c: c.fed.selection in ("uniform", "round_robin", POISSON),
    "uniform, round_robin or poisson with secure.aggregation: the others depend on hidden values",
  ),
  Rule(
    "privacy.dp",
    lambda c: c.privacy.dp != "local",
    "none or central with secure.aggregation: the noise of local has no bound to encode it in",
  ),
  Rule(
    "fed.max_update_norm",
    lambda c: c.fed.max_update_norm == 0,
    "0 with secure.aggregation: privacy.clip bounds the updates that the server cannot see",
  ),
  Rule(
    "fed.clients_per_round",
    lambda c: not _poisson(c) or terms.too_small_rounds(c.experiment) <= c.privacy.delta / 10,
    f"more with poisson and secure.aggregation: a round of {FEWEST} or fewer clients has no sum,"
    " and must be far less likely than privacy.delta",
  ),
)

_ROUTING = where(
  lambda c: c.prompter.routing == "sites",
  Rule(
    "privacy.dp",
    lambda c: not _private(c),
    "none with prompter.routing=sites, since the image statistics of sites have no noise",
  ),
  Rule(
    "privacy.example_clip",
    lambda c: c.privacy.example_clip == 0,
    "0 with prompter.routing=sites, since the image statistics of sites have no noise",
  ),
  Rule(
    "secure.aggregation",
    lambda c: not _secure(c),
    "False with prompter.routing=sites, where the server sees the image statistics of each site",
  ),
  Rule("fed.share", lambda c: c.fed.share == "all", "all with prompter.routing=sites"),
  Rule(
    "prompter.see_image",
    lambda c: c.prompter.see_image,
    "True with prompter.routing=sites, which goes by the image alone",
  ),
)

_LOCAL = (
  Rule(
    "fed.local_leaves",
    lambda c: not c.fed.local_leaves,
    "none with fed.share=none, where all leaves are local",
    when=lambda c: c.fed.share == "none",
  ),
  Rule(
    "fed.local_leaves",
    lambda c: not any(is_local(leaf, local_patterns(c.fed)) for leaf in ROUTING_LEAVES),
    "patterns without keys and query of the pool with prompter.routing=sites, which sets them",
    when=lambda c: c.prompter.routing == "sites" and c.fed.share == "all",
  ),
  *where(
    lambda c: c.optim.local_only > 0,
    Rule(
      "optim.local_only",
      lambda c: c.optim.local_only < c.optim.local_steps,
      "less than optim.local_steps, {c.optim.local_steps}",
    ),
    Rule(
      "optim.local_only",
      lambda c: c.fed.share == "all" and (c.prompter.local or bool(c.fed.local_leaves)),
      "0 unless some leaves are local and some shared",
    ),
    Rule(
      "optim.local_only",
      lambda c: not _has_controls(c) and c.privacy.example_clip == 0,
      "0 with a strategy that has controls, and with privacy.example_clip: they are of steps that"
      " train all leaves",
    ),
  ),
)

RULES = (*_SELECTION, *_LOCAL, *_ATTACK, *_PRIVACY, *_EXAMPLE_PRIVACY, *_SECURE, *_ROUTING)


def validate(config: settings.Experiment) -> None:
  """Rejects settings that are not legal, or that do not fit together.

  Raises:
    UserError: naming the field, what is expected, and the value.
  """
  check_values(config)
  check_cap(config.data)
  decoding_settings(config.eval)
  clients = budget.num_participants(config)
  groups = {name: getattr(config, name) for name in Case._fields[3:]}
  case = Case(config, clients, strategies.get_strategy(config.fed.strategy, clients), **groups)
  for rule in RULES:
    if rule.when(case):
      value = operator.attrgetter(rule.field)(case)
      require(rule.field, value, rule.holds(case), rule.expected.format(c=case))
  terms.sizes_fit(config)
