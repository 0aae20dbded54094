"""Coordinate-wise median: bounded by the honest sites while they are most of a row's senders.

Yin et al. 2018, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
Definition 1 and Algorithm 1, option I: of gradients there, of params here, which all started from
the same. Sites weigh alike. A row that only one site sent takes that site's value: against faulty
sites, use `uplink.select = "dense"` or `uplink.weighing = "cohort"`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from afspl_jax.federation.contracts import Update
from afspl_jax.federation.protocol.uplink import where_sent
from afspl_jax.federation.strategies._base import ServerSide
from afspl_jax.federation.strategies._mean import in_order, middle_mean
from afspl_jax.types import Params


@dataclass(frozen=True)
class Median(ServerSide):
  """Takes of every entry the median over the sites that sent its row."""

  def aggregate(self, params: Params, state: Any, updates: Sequence[Update]) -> tuple[Params, Any]:
    """Medians, those of an even number the mean of the middle two."""
    mean = middle_mean(in_order(updates), lambda senders: max(senders - 1, 0) // 2)
    return where_sent(mean.values, params, mean.sent), state


create = Median
