"""FedOpt: an adaptive optimizer on the server, with the round's mean update as its gradient.

Reddi et al. 2021, "Adaptive Federated Optimization", Algorithm 2 (FedAdagrad, FedYogi, FedAdam).
With D the mean of the sites' updates, a round is

  m <- beta1 m + (1 - beta1) D
  v <- by the method, from v and D^2
  x <- x + server_lr m / (sqrt(v) + tau)

from m = 0 and v = tau^2 (the algorithm asks for v >= tau^2), with no correction of the bias towards
these. D is weighted by the numbers of examples; the algorithm's is not.
"""

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np
from jaxtyping import Float64

from afspl_jax.federation.contracts import Update
from afspl_jax.federation.protocol.uplink import where_sent
from afspl_jax.federation.strategies._base import ServerSide, require_option
from afspl_jax.federation.strategies._mean import mean_update
from afspl_jax.storage.pytrees import zeros_like
from afspl_jax.types import Params

Moment = Float64[np.ndarray, "..."] | np.float64  # arithmetic makes a scalar of a 0-d array


@dataclass(frozen=True)
class FedOpt(ServerSide, abc.ABC):
  """The server's step; a method says how v moves."""

  of_mean: ClassVar[bool] = True

  server_lr: float = 0.1  # eta: step of the server; the paper tunes it for every task
  beta1: float = 0.9  # decay of m a round
  tau: float = 1e-3  # added to sqrt(v): the smaller, the more adaptive. As in the paper's runs

  def __post_init__(self):
    require_option(self, "server_lr", 0 < self.server_lr < math.inf, "a finite number above 0")
    require_option(self, "beta1", 0 <= self.beta1 < 1, "a number from 0 to below 1")
    require_option(self, "tau", 0 < self.tau < math.inf, "a finite number above 0")

  @abc.abstractmethod
  def second_moment(self, v: Moment, update: Moment) -> Moment:
    """The new v of a leaf, from the old and D."""

  def init(self, params: Params) -> Any:
    """m and v, float64 so that the square of any float32 has room."""
    return {
      "m": zeros_like(params, np.float64),
      "v": jax.tree.map(lambda leaf: np.full(leaf.shape, self.tau * self.tau), params),
    }

  def aggregate(self, params: Params, state: Any, updates: Sequence[Update]) -> tuple[Params, Any]:
    """One step in the rows that were sent; m and v of the others wait."""
    mean = mean_update(params, updates)
    m = jax.tree.map(lambda m, d: self.beta1 * m + (1 - self.beta1) * d, state["m"], mean.values)
    v = jax.tree.map(self.second_moment, state["v"], mean.values)
    new = jax.tree.map(self._step, params, m, v)
    moments = {"m": m, "v": v}
    kept = {name: where_sent(moments[name], state[name], mean.sent) for name in moments}
    return where_sent(new, params, mean.sent), kept

  def _step(self, x, m, v):
    return x.astype(np.float64) + self.server_lr * m / (np.sqrt(v) + self.tau)
