"""Which settings of privacy and secure aggregation fit together, and with the others."""

from afspl_jax.federation import strategies
from afspl_jax.federation.contracts import POISSON
from afspl_jax.federation.protocol.uplink import SAME_ROWS
from afspl_jax.federation.secure import terms
from afspl_jax.federation.secure.graph import FEWEST
from afspl_jax.runs.rule import (
  Rule,
  countable_selection,
  has_controls,
  mean_suffices,
  poisson,
  private,
  same_rows,
  secure,
  where,
)

_ROWS = " or ".join(SAME_ROWS)

PRIVACY = (
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
    lambda c: not poisson(c),
    "another selection with privacy.dp=none: the secret draws of poisson cannot be repeated",
    when=lambda c: not private(c),
  ),
  *where(
    private,
    Rule(
      "privacy.noise",
      lambda c: c.privacy.noise > 0 or c.privacy.epsilon > 0,
      "a number above 0, or a privacy.epsilon to choose it by",
    ),
    Rule(
      "uplink.select",
      same_rows,
      f"{_ROWS} with privacy.dp, since a choice by energy reveals data",
    ),
    Rule("fed.share", lambda c: c.fed.share == "all", "all with privacy.dp"),
    Rule(
      "fed.strategy",
      mean_suffices,
      "a strategy that needs only the mean of the updates with privacy.dp",
    ),
    Rule(
      "fed.selection",
      countable_selection,
      "poisson, round_robin, or uniform of all clients with privacy.dp: the others depend on"
      " private values, or their privacy cannot be counted in advance",
    ),
    Rule(
      "fed.min_replies",
      lambda c: c.fed.min_replies == 1 or not poisson(c),
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
      lambda c: not poisson(c),
      "another selection with privacy.dp=local: the server sees who takes part",
    ),
  ),
)

EXAMPLE_PRIVACY = where(
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
    lambda c: not (has_controls(c) or strategies.of_losses(c.strategy)),
    "one without controls and losses with privacy.example_clip, since these travel without noise",
  ),
  Rule(
    "fed.selection",
    lambda c: c.fed.selection != "power_of_choice",
    "another selection with privacy.example_clip, since losses are not sent",
  ),
)

SECURE = where(
  secure,
  Rule(
    "fed.clients_per_round",
    lambda c: c.fed.clients_per_round >= FEWEST,
    f"at least {FEWEST} with secure.aggregation: each of two could compute the other's update",
  ),
  Rule(
    "uplink.select",
    same_rows,
    f"{_ROWS} with secure.aggregation, where all clients send the same rows",
  ),
  Rule(
    "fed.strategy",
    mean_suffices,
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
    lambda c: not poisson(c) or terms.too_small_rounds(c.experiment) <= c.privacy.delta / 10,
    f"more with poisson and secure.aggregation: a round of {FEWEST} or fewer clients has no sum,"
    " and must be far less likely than privacy.delta",
  ),
)
