"""FedAvgM: FedAvg with momentum on the server.

Hsu, Qi and Brown 2019, "Measuring the Effects of Non-Identical Data Distribution for Federated
Visual Classification", the update `v <- beta v + dw; w <- w - v`, where dw is minus FedAvg's mean
update. The momentum is plain, not Nesterov's; the server's learning rate, 1 in the paper, scales v.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np

from afspl_jax.federation.contracts import Update
from afspl_jax.federation.protocol.uplink import where_sent
from afspl_jax.federation.strategies._base import ServerSide, require_option
from afspl_jax.federation.strategies._mean import mean_update
from afspl_jax.storage.pytrees import zeros_like
from afspl_jax.types import Params


@dataclass(frozen=True)
class FedAvgM(ServerSide):
  """Moves the params by a sum of the rounds' mean updates, older ones weighing less."""

  of_mean: ClassVar[bool] = True

  server_lr: float = 1.0  # factor of the momentum in a step
  momentum: float = 0.9  # beta: what is left of the momentum after a round; 0 = FedAvg

  def __post_init__(self):
    require_option(self, "server_lr", 0 < self.server_lr < math.inf, "a finite number above 0")
    require_option(self, "momentum", 0 <= self.momentum < 1, "a number from 0 to below 1")

  def init(self, params: Params) -> Any:
    """The momentum, float64, in the params' direction: zeros."""
    return {"momentum": zeros_like(params, np.float64)}

  def aggregate(self, params: Params, state: Any, updates: Sequence[Update]) -> tuple[Params, Any]:
    """One step of momentum in the rows that were sent; the momentum of the others waits."""
    mean = mean_update(params, updates)
    summed = jax.tree.map(lambda v, d: self.momentum * v + d, state["momentum"], mean.values)
    new = jax.tree.map(lambda x, v: x.astype(np.float64) + self.server_lr * v, params, summed)
    momentum = where_sent(summed, state["momentum"], mean.sent)
    return where_sent(new, params, mean.sent), {"momentum": momentum}


create = FedAvgM
