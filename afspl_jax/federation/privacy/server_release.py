"""The server's half of client-level privacy; the client's half is update_clipping.py.

The server clips every update again, sums them, adds noise if it is trusted to (privacy.dp=central),
and divides by the number of clients that is expected in a round. It does not divide by the number
that took part, because the mean would reveal it. The strategy gets this mean as the round's only
update.

McMahan et al. 2018, "Learning Differentially Private Recurrent Language Models", algorithm 1, with
equal weights and the estimator with a fixed denominator.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from afspl_jax.config.experiment import Experiment
from afspl_jax.federation.contracts import WITHIN, Rejected, Update
from afspl_jax.federation.privacy import accounting
from afspl_jax.federation.privacy.accounting import Mechanism
from afspl_jax.federation.privacy.budget import (
  LEDGER,
  adaptive,
  first_bound,
  is_private,
  most_moved,
  noise_multiplier,
  planned,
)
from afspl_jax.federation.privacy.clipping import clip
from afspl_jax.federation.privacy.ledger import Ledger
from afspl_jax.federation.privacy.noise import noisy
from afspl_jax.federation.protocol import uplink
from afspl_jax.storage.pytrees import zeros_like
from afspl_jax.types import Params


class BudgetSpent(Exception):
  """One more round would cost more than a privacy budget allows."""


class Total(NamedTuple):
  """A sum over clients, each clipped."""

  update: Params  # float64: sum of the updates
  within: float  # number of clients whose update was within the bound
  clients: int  # number of clients


class Release:
  """Releases sums of clipped updates with noise, and accounts for them.

  Args:
    config: the experiment's.
    ledger: counts the releases.
  """

  def __init__(self, config: Experiment, ledger: Ledger):
    self._config, self._privacy, self._ledger = config, config.privacy, ledger
    self._clients = config.fed.clients_per_round  # in a round; with Poisson sampling, on average
    self.noise = noise_multiplier(config)
    probability, _ = planned(config)
    self._mechanism = Mechanism(self.noise / most_moved(config.privacy), probability)
    self._at_server = config.privacy.dp == "central"
    self._adaptive = adaptive(config) if first_bound(config.privacy) else None

  def first_state(self) -> dict[str, np.float64]:
    """Additional entries of the server's state before the first round."""
    return first_bound(self._privacy)

  def bound(self, state: dict[str, Any]) -> float:
    """The bound on updates in the round that follows a state."""
    return float(state.get("clip", self._privacy.clip))

  def afford(self, sites: Collection[str]) -> None:
    """Checks that the budget allows a round with these sites.

    Raises:
      BudgetSpent: it does not.
    """
    cost, budget = self._epsilon(sites, 1), self._privacy.epsilon
    if budget and cost > budget:
      raise BudgetSpent(
        f"another round would bring epsilon to {cost:.4g} at delta {self._privacy.delta:g}, beyond"
        f" privacy.epsilon={budget:g}"
      )
    if not self._at_server:  # sites send noisy updates, even if the round then fails
      self._ledger.charge(sites)

  def screen(self, reply: Update, round: int) -> Update:
    """The update, if it reveals only what was agreed on.

    Raises:
      Rejected: it has other rows, metrics or weights.
    """
    draw_key = self._config.seed, round
    rows = uplink.shared_rows(reply.params, self._config.uplink, draw_key)
    if not jax.tree.all(jax.tree.map(np.array_equal, reply.masks, rows)):
      raise Rejected("expected the rows that all send in this round; got others")
    expected = {WITHIN} if self._adaptive else set()
    if set(reply.metrics) != expected or reply.num_examples != 1:
      raise Rejected(
        f"expected the metrics {sorted(expected)} and the weight 1; got"
        f" {sorted(reply.metrics)} and {reply.num_examples}"
      )
    if self._adaptive and reply.metrics[WITHIN] not in (0.0, 1.0):
      raise Rejected(f"{WITHIN}: expected 0 or 1; got {reply.metrics[WITHIN]}")
    return reply

  def combine(
    self,
    params: Params,
    total: Total,
    bound: float,
    round: int,
    sites: Collection[str],
  ) -> tuple[Update, dict[str, float], dict[str, Any]]:
    """The round's one update, the numbers to log, and what is kept for the next round.

    Args:
      params: the global params that the sites started from.
      total: the round's sum.
      bound: of each client's update in this round.
      round: the round.
      sites: those that were asked.
    """
    metrics, kept = {"clip": bound}, {}
    if self._at_server:
      self._ledger.charge(sites if self._mechanism.probability == 1 else ())
      noise = self.noise
      if self._adaptive:
        counted = np.float64(total.within - total.clients / 2)  # each client: 1/2 or -1/2
        released = float(noisy(counted, self._adaptive.count_noise(noise)))
        noise = self._adaptive.update_noise(noise)
        share = released / self._clients + 0.5
        metrics[WITHIN] = share
        kept["clip"] = np.float64(self._adaptive.next(bound, share))
      total = total._replace(update=noisy(total.update, noise * bound))
    rows = uplink.shared_rows(params, self._config.uplink, (self._config.seed, round))
    mean = uplink.moved(params, total.update, rows, self._clients)
    metrics["epsilon"] = self._epsilon((), 0)
    return Update("all", mean, rows, 1, {}), metrics, kept

  def _epsilon(self, sites: Collection[str], more: int) -> float:
    if self._mechanism.probability < 1:
      times = self._ledger.releases + more
    else:
      times = self._ledger.most(sites)
    return accounting.epsilon(self._mechanism, times, self._privacy.delta)


def release_of(config: Experiment, folder: Path) -> "Release | None":
  """The server's half, if updates are private; `folder` gets the account of what is spent."""
  return Release(config, Ledger(folder / LEDGER)) if is_private(config) else None


def total_of(params: Params, replies: Sequence[Update], bound: float) -> Total:
  """The sum of the updates, each clipped here whether or not its client did."""
  total = zeros_like(params, np.float64)
  for reply in replies:
    update, _ = clip(uplink.added(reply.params, params), bound)
    total = jax.tree.map(np.add, total, update)
  within = sum(reply.metrics.get(WITHIN, 0.0) for reply in replies)
  return Total(total, within, len(replies))
