"""Privacy settings: which combinations give a valid guarantee, and how much noise they need."""

import math

import numpy as np

from afspl_jax.config.experiment import Experiment, Privacy, choice, expect
from afspl_jax.federation import strategies
from afspl_jax.federation.contracts import POISSON
from afspl_jax.federation.privacy import accounting
from afspl_jax.federation.privacy.clipping import Adaptive
from afspl_jax.federation.protocol import uplink

LEDGER = "privacy.json"  # in the folder of the side that adds the noise


def is_private(config: Experiment) -> bool:
  """Whether updates are clipped and summed before they are used."""
  return config.privacy.dp != "none"


def check(config: Experiment) -> None:
  """Refuses settings that make no promise, or one that would not hold.

  Raises:
    UserError: naming the field, what it may be, and what it is.
  """
  privacy = config.privacy
  choice("privacy.dp", privacy.dp, ("none", "central", "local"))
  choice("privacy.clipping", privacy.clipping, ("fixed", "adaptive"))
  most = 1 / config.data.num_clients
  ranges = {
    "epsilon": (0 <= privacy.epsilon < math.inf, "a finite number from 0 on"),
    "noise": (0 <= privacy.noise < math.inf, "a finite number from 0 on"),
    "clip_lr": (0 <= privacy.clip_lr < math.inf, "a finite number from 0 on"),
    "clip": (0 < privacy.clip < math.inf, "a finite number above 0"),
    "clip_quantile": (0 < privacy.clip_quantile < 1, "a share between 0 and 1"),
    "delta": (0 < privacy.delta <= most / 2, f"well below 1 / data.num_clients, {most:g}"),
  }
  for name, (holds, expected) in ranges.items():
    expect(f"privacy.{name}", getattr(privacy, name), holds, expected)
  if privacy.dp == "none":
    repeats = config.fed.selection != POISSON
    expect("fed.selection", POISSON, repeats, "another with privacy.dp=none: coins do not repeat")
  else:
    _check_promise(config)


def _check_promise(config: Experiment) -> None:
  privacy, fed = config.privacy, config.fed
  pays = privacy.noise > 0 or privacy.epsilon > 0
  expect("privacy.noise", privacy.noise, pays, "a number above 0, or privacy.epsilon to pay with")
  rows, strategy = config.uplink.select, strategies.get(fed.strategy, clients(config))
  expect(
    "uplink.select",
    rows,
    rows in uplink.SAME_ROWS,
    f"{' or '.join(uplink.SAME_ROWS)} with privacy.dp, as a choice by energy tells of the data",
  )
  expect("fed.share", fed.share, fed.share == "all", "all with privacy.dp")
  expect(
    "fed.strategy",
    fed.strategy,
    strategies.of_mean(strategy),
    "one that needs nothing of the updates but their mean with privacy.dp",
  )
  everyone = fed.selection == "uniform" and fed.clients_per_round == clients(config)
  expect(
    "fed.selection",
    fed.selection,
    everyone or fed.selection in (POISSON, "round_robin"),
    "poisson or round_robin, or uniform of all clients, with privacy.dp: the others go by what is"
    " private, or cannot be counted ahead",
  )
  expect(
    "fed.min_replies",
    fed.min_replies,
    fed.min_replies == 1 or fed.selection != POISSON,
    "1 with poisson: rounds in which coins draw few would fail, and who took part in the others"
    " be no secret coin's any more",
  )
  if privacy.dp == "local":
    expect("privacy.clipping", privacy.clipping, privacy.clipping == "fixed", "fixed with local")
    hidden = fed.selection == POISSON
    expect(
      "fed.selection", POISSON, not hidden, "another with local: the server sees who takes part"
    )


def clients(config: Experiment) -> int:
  """The number of clients in the federation."""
  return config.data.num_clients - config.fed.newcomers


def planned(config: Experiment) -> tuple[float, int]:
  """The sampling probability of a client, and the number of releases that it pays for."""
  fed, sites = config.fed, clients(config)
  if fed.selection == POISSON:
    return fed.clients_per_round / sites, fed.rounds
  return 1.0, -(-fed.rounds * fed.clients_per_round // sites)


def noise_multiplier(config: Experiment) -> float:
  """`privacy.noise`, or the smallest multiplier whose cost for all rounds is within the budget."""
  privacy = config.privacy
  if privacy.noise or not config.fed.rounds:
    return privacy.noise
  least = accounting.noise_for(privacy.epsilon, privacy.delta, *planned(config))
  return least * most_moved(privacy)


def first_bound(privacy: Privacy) -> dict[str, np.float64]:
  """Additional entries of the server's first state: the bound, if it is adaptive."""
  adapts = privacy.dp != "none" and privacy.clipping == "adaptive"
  return {"clip": np.float64(privacy.clip)} if adapts else {}


def adaptive(config: Experiment) -> Adaptive:
  """The rule of an adaptive bound."""
  privacy = config.privacy
  return Adaptive(privacy.clip_quantile, privacy.clip_lr, config.fed.clients_per_round)


def most_moved(privacy: Privacy) -> float:
  """The sensitivity of a release, over `clip`.

  It is 1 for the presence of a client in a sum, and 2 where every client adds its own noise: its
  release is there in any case, and the noise hides which of two updates it has.
  """
  return 2.0 if privacy.dp == "local" else 1.0
