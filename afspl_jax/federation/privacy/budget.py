"""Privacy settings: how much noise and how many releases they need."""

import numpy as np

from afspl_jax.config.experiment import Experiment, Privacy
from afspl_jax.federation.contracts import POISSON
from afspl_jax.federation.privacy import accounting
from afspl_jax.federation.privacy.clipping import Adaptive

LEDGER = "privacy.json"  # in the folder of the side that adds the noise


def is_private(config: Experiment) -> bool:
  """Whether updates are clipped and summed before they are used."""
  return config.privacy.dp != "none"


def num_participants(config: Experiment) -> int:
  """The number of clients in the federation."""
  return config.data.num_clients - config.fed.newcomers


def planned(config: Experiment) -> tuple[float, int]:
  """The sampling probability of a client, and the number of releases that it pays for."""
  fed, sites = config.fed, num_participants(config)
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
