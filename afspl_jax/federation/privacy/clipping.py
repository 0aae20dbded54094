"""Bounds on a client's contribution to a sum: the L2 norm of its update, fixed or adaptive."""

import math
from typing import NamedTuple

import jax
import numpy as np

from afspl_jax.types import Params

_SHARE_OF_COUNT = 20  # the paper's noise on the count is the expected number of clients over this


class Clipped(NamedTuple):
  """An update within a bound."""

  update: Params  # float64
  was_larger: bool


def norm(update: Params) -> float:
  """The L2 norm over all leaves, in float64."""
  leaves = jax.tree.leaves(update)
  with np.errstate(over="ignore"):
    return math.sqrt(sum(float(np.sum(np.square(leaf, dtype=np.float64))) for leaf in leaves))


def clip(update: Params, bound: float) -> Clipped:
  """The update, scaled down to the bound if it is larger; zeros if it is not finite.

  The numbers of a reply are finite, but their norm may not be. Such an update is useless, and must
  not spoil the sum.
  """
  size = norm(update)
  if not math.isfinite(size):
    return Clipped(jax.tree.map(lambda leaf: np.zeros(np.shape(leaf)), update), True)
  factor = min(1.0, bound / size) if size else 1.0
  scale = lambda leaf: np.asarray(np.multiply(leaf, factor, dtype=np.float64))  # noqa: E731
  return Clipped(jax.tree.map(scale, update), size > bound)


class Adaptive(NamedTuple):
  """The rule by which the bound follows a quantile of the updates' norms, privately.

  Andrew et al. 2021, "Differentially Private Learning with Adaptive Clipping", algorithm 1: with b
  the noisy share of clients whose update was within the bound C, C <- C exp(-lr (b - quantile)).
  """

  quantile: float
  lr: float
  clients: int  # expected in a round

  def count_noise(self, noise: float) -> float:
    """Standard deviation of the noise on the number of clients within the bound.

    As in the paper, but larger with few clients, so that it takes at most a quarter of the budget.
    """
    return max(self.clients / _SHARE_OF_COUNT, noise)

  def update_noise(self, noise: float) -> float:
    """The noise multiplier of the updates; together with the count's it costs as much as `noise`.

    Theorem 1 of the paper: each client counts as 1/2 or -1/2.
    """
    return (noise**-2 - (2 * self.count_noise(noise)) ** -2) ** -0.5

  def next(self, bound: float, noisy_share: float) -> float:
    """The bound of the next round."""
    return bound * math.exp(-self.lr * (noisy_share - self.quantile))
