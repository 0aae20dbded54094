"""q-FedAvg: sites with a higher loss weigh more, so that losses become more even.

Li et al. 2020, "Fair Resource Allocation in Federated Learning", Algorithm 2. With F the loss of a
site at the params it was sent, and w - w_k what it took off them, the algorithm moves by

  sum_k F_k^q L (w_k - w) / sum_k (q F_k^(q-1) ||L (w - w_k)||^2 + L F_k^q)

Sites weigh alike, whatever their size: `fed.selection = "size"` draws them as the algorithm does.
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
from afspl_jax.federation.strategies._mean import in_order, site_differences, weighted_mean
from afspl_jax.types import Params

FIRST_LOSS = "first_loss"  # an update's metric: the local loss before any local step

# Added to a loss, as in the authors' code (fair_flearn): a loss of 0 has no power below 0.
_LEAST = 1e-10


@dataclass(frozen=True)
class QFedAvg(ServerSide):
  """Minimises the sum of the sites' F^(q+1) instead of the sum of F."""

  of_losses: ClassVar[bool] = True

  q: float = 1.0  # fairness; 0 = the plain, unweighted average. The paper's choices: 0.001 to 5
  client_lr: float = 0.1  # 1 / L, the step of local training for which L is the right constant

  def __post_init__(self):
    require_option(self, "q", 0 <= self.q < math.inf, "a finite number from 0 on")
    require_option(self, "client_lr", 0 < self.client_lr < math.inf, "a finite number above 0")

  def aggregate(self, params: Params, state: Any, updates: Sequence[Update]) -> tuple[Params, Any]:
    """The algorithm's step, its sums row by row over the sites that sent the row.

    Raises:
      ValueError: an update without the metric `first_loss`, or with a negative one.
    """
    updates = in_order(updates)
    losses = [_first_loss(update) for update in updates]
    # The fraction is the mean of (w_k - w) / drag_k, weighted by F_k^q drag_k, where drag_k is
    # 1 + q L ||w - w_k||^2 / F_k. Losses count by their ratios: no power of one overflows.
    drags = [
      1 + self.q * _square_norm(step) / (self.client_lr * loss)
      for step, loss in zip(site_differences(params, updates), losses, strict=True)
    ]
    weights = [
      (loss / max(losses)) ** self.q * drag for loss, drag in zip(losses, drags, strict=True)
    ]
    shorter = (
      jax.tree.map(lambda leaf, drag=drag: leaf / drag, step)
      for step, drag in zip(site_differences(params, updates), drags, strict=True)
    )
    mean = weighted_mean(shorter, updates, weights)
    new = jax.tree.map(np.add, params, mean.values)
    return where_sent(new, params, mean.sent), state


def _first_loss(update: Update) -> float:
  loss = update.metrics.get(FIRST_LOSS)
  if loss is None or loss < 0:
    raise ValueError(
      f"qfedavg: expected the metric {FIRST_LOSS}, 0 or more, of every site; "
      f"got {loss} from {update.site}"
    )
  return loss + _LEAST


def _square_norm(tree: Params) -> float:
  return float(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree)))


create = QFedAvg
