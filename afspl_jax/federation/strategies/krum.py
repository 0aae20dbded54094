"""Krum: the update that is nearest to its nearest ones; multi-Krum: the mean of several such.

Blanchard et al. 2017, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
the Krum function and its variant Multi-Krum. Distances are between whole updates, a row that was
not sent counting as unchanged. The mean is over the picked sites that sent the row; sites weigh
alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float64

from afspl_jax.federation.contracts import Update
from afspl_jax.federation.protocol.uplink import where_sent
from afspl_jax.federation.strategies._base import ServerSide, require_option
from afspl_jax.federation.strategies._mean import in_order, weighted_mean
from afspl_jax.types import Params


@dataclass(frozen=True)
class Krum(ServerSide):
  """Keeps the updates of the lowest scores: squared distances to the n - f - 2 nearest others."""

  faulty: int = 1  # f: sites of a round that may send anything; there must be 2 f + 3 updates
  multi: int = 1  # m: updates that are kept and averaged; 1 = Krum

  def __post_init__(self):
    require_option(self, "faulty", self.faulty >= 0, "a whole number from 0 on")
    require_option(self, "multi", self.multi >= 1, "a whole number from 1 on")

  def aggregate(self, params: Params, state: Any, updates: Sequence[Update]) -> tuple[Params, Any]:
    """The mean of the picked updates; of equal scores the earlier site's name wins.

    Raises:
      ValueError: fewer updates than 2 f + 3, or than f + m: of more picked one could be faulty.
    """
    needed = max(2 * self.faulty + 3, self.faulty + self.multi)
    if len(updates) < needed:
      raise ValueError(
        f"krum: expected at least {needed} updates for faulty={self.faulty},multi={self.multi}; "
        f"got {len(updates)}"
      )
    updates = in_order(updates)
    nearest = np.sort(_square_distances(updates), axis=1)[:, : len(updates) - self.faulty - 2]
    best = np.argsort(nearest.sum(axis=1), kind="stable")[: self.multi]
    picked = [updates[i] for i in sorted(best)]
    mean = weighted_mean((update.params for update in picked), picked, [1] * len(picked))
    return where_sent(mean.values, params, mean.sent), state


def _square_distances(updates: Sequence[Update]) -> Float64[np.ndarray, "n n"]:
  """Between all pairs, infinite from an update to itself.

  Differences are squared, not products subtracted: those lose all digits where updates differ by
  little from each other and by much from 0.
  """
  count = len(updates)
  distances = np.full((count, count), 0.0)
  for leaves in zip(*(jax.tree.leaves(update.params) for update in updates), strict=True):
    rows = np.stack(leaves).astype(np.float64).reshape(count, -1)
    for i in range(count):
      distances[i] += np.square(rows - rows[i]).sum(axis=1)
  np.fill_diagonal(distances, np.inf)
  return distances


create = Krum
