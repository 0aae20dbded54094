"""SCAFFOLD: sites correct their local gradients for how these differ from those of all sites.

Karimireddy et al. 2020, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning",
Algorithm 1. Where sites' data differ, each drifts in many local steps towards its own optimum. So
each keeps a control c_i, the gradient that it last found, and the server keeps c, their mean over
all N sites; at first they are zeros. A local step is by g + (c - c_i). A site sends its params y_i
and what was added to its control, c_i+ - c_i. The server then moves by the round's sites S, which
weigh alike:

  x <- x + server_lr mean_S (y_i - x)
  c <- c + |S| / N mean_S (c_i+ - c_i)

c_i+ is the paper's option II, c_i - c + (x - y_i) / (K lr). As K steps of SGD end at
y_i = x - lr sum_k (g_k + c - c_i), that is the mean of the g_k, the gradients without correction.
Here it is that mean for any optimizer: with Adam, clipping and schedules, x - y_i is no sum of
gradients. The correction is added first, before clipping and Adam.

Note two things. The changes that a site sends add up to its control, so the server can compute the
mean gradient of the site's last local steps. And if an update comes too late or is rejected, its
change is missing in c from then on, because the site keeps its new control: c is then no longer the
mean of the c_i.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from afspl_jax.federation.contracts import Update
from afspl_jax.federation.protocol.uplink import where_sent
from afspl_jax.federation.strategies._base import ServerSide, require_option
from afspl_jax.federation.strategies._mean import in_order, site_differences, weighted_mean
from afspl_jax.storage.pytrees import zeros_like
from afspl_jax.types import Params


@dataclass(frozen=True)
class Scaffold(ServerSide):
  """Averages the sites' params alike, and keeps the mean of their controls."""

  server_lr: float = 1.0  # eta_g: step of the server
  num_sites: int = 0  # N: sites in the federation

  def __post_init__(self):
    require_option(self, "server_lr", 0 < self.server_lr < math.inf, "a finite number above 0")
    require_option(self, "num_sites", self.num_sites > 0, "the number of sites in the federation")

  def init(self, params: Params) -> Any:
    """The control, float64: zeros."""
    return {"control": zeros_like(params, np.float64)}

  def control(self, params: Params, state: Any) -> Params:
    """c, as it is sent."""
    return jax.tree.map(lambda x, c: c.astype(x.dtype), params, state["control"])

  def aggregate(self, params: Params, state: Any, updates: Sequence[Update]) -> tuple[Params, Any]:
    """The algorithm's step, its means row by row over the sites that sent the row.

    Raises:
      ValueError: an update without a control.
    """
    updates = in_order(updates)
    alike, share = [1] * len(updates), len(updates) / self.num_sites
    step = weighted_mean(site_differences(params, updates), updates, alike)
    change = weighted_mean((_control(update) for update in updates), updates, alike)
    new = jax.tree.map(lambda x, d: x.astype(np.float64) + self.server_lr * d, params, step.values)
    control = jax.tree.map(lambda c, d: c + share * d, state["control"], change.values)
    kept = where_sent(control, state["control"], change.sent)
    return where_sent(new, params, step.sent), {"control": kept}


def _control(update: Update) -> Params:
  if update.control is None:
    raise ValueError(f"scaffold: expected a control of every site; got none from {update.site}")
  return update.control


create = Scaffold
