"""FedAvg: the plain weighted average, of every row over the sites that sent it.

McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data",
Algorithm 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from afspl_jax.federation.contracts import Update
from afspl_jax.federation.protocol.uplink import where_sent
from afspl_jax.federation.strategies._base import ServerSide
from afspl_jax.federation.strategies._mean import in_order, weighted_mean
from afspl_jax.types import Params


@dataclass(frozen=True)
class FedAvg(ServerSide):
  """Averages the sites' params, weighted by their numbers of examples; unsent rows stay."""

  of_mean: ClassVar[bool] = True

  def aggregate(self, params: Params, state: Any, updates: Sequence[Update]) -> tuple[Params, Any]:
    """Weighted means, summed in float64 in the order of site names, in the leaves' dtypes."""
    updates = in_order(updates)
    weights = [update.num_examples for update in updates]
    mean = weighted_mean((update.params for update in updates), updates, weights)
    return where_sent(mean.values, params, mean.sent), state


create = FedAvg
