"""Coordinate-wise trimmed mean: the mean without a share of the extremes at both ends.

Yin et al. 2018, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
Definition 2 and Algorithm 1, option II. Sites weigh alike. Of few senders of a row nothing is cut:
against faulty sites, use `uplink.select = "dense"` or `uplink.weighing = "cohort"`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from afspl_jax.federation.contracts import Update
from afspl_jax.federation.protocol.uplink import where_sent
from afspl_jax.federation.strategies._base import ServerSide, require_option
from afspl_jax.federation.strategies._mean import in_order, middle_mean
from afspl_jax.types import Params


@dataclass(frozen=True)
class TrimmedMean(ServerSide):
  """Averages every entry over the sites that sent its row, but for the lowest and the highest."""

  trim: float = 0.2  # beta: share of a row's senders cut at each end, rounded down

  def __post_init__(self):
    require_option(self, "trim", 0 <= self.trim < 0.5, "a share from 0 to below 0.5")

  def aggregate(self, params: Params, state: Any, updates: Sequence[Update]) -> tuple[Params, Any]:
    """Trimmed means, of at least one value."""
    share = Fraction(str(self.trim))  # in floats 29 % of 100 are 28.999999999999996
    mean = middle_mean(in_order(updates), lambda senders: math.floor(share * senders))
    return where_sent(mean.values, params, mean.sent), state


create = TrimmedMean
