"""What of a client's update leaves it under privacy: the client's half; the server's is release.py.

A client bounds its update, adds noise where nobody is to be trusted, and sends neither metrics nor
its number of examples: clients weigh alike.
"""

import math
from pathlib import Path
from typing import Any

from afspl_jax.config.experiment import Experiment
from afspl_jax.federation.contracts import WITHIN, SiteFault, Update
from afspl_jax.federation.privacy import accounting
from afspl_jax.federation.privacy.accounting import Mechanism
from afspl_jax.federation.privacy.budget import LEDGER, is_private, most_moved, noise_multiplier
from afspl_jax.federation.privacy.clipping import clip
from afspl_jax.federation.privacy.ledger import Ledger
from afspl_jax.federation.privacy.noise import noisy
from afspl_jax.federation.protocol import uplink
from afspl_jax.federation.protocol.wire import WireError
from afspl_jax.types import Params


class Guard:
  """The client's half.

  Args:
    config: the experiment's.
    ledger: of the client's side, for noise that it adds itself.
  """

  def __init__(self, config: Experiment, ledger: Ledger):
    self._privacy, self._ledger = config.privacy, ledger
    self._noise = noise_multiplier(config) if config.privacy.dp == "local" else 0.0
    self._reports = config.privacy.clipping == "adaptive"

  def bound(self, given: Any) -> float:
    """The bound of a round: what the server sent, if that may be.

    Raises:
      WireError: not what was agreed on.
    """
    fixed = self._privacy.clip
    if not (
      isinstance(given, float) and 0 < given < math.inf and (self._reports or given == fixed)
    ):
      raise WireError(f"clip: expected {'above 0' if self._reports else fixed}; got {given!r}")
    return given

  def leave(self, site: str, result: Update, start: Params, bound: float) -> Update:
    """What may leave of a result.

    Args:
      site: whose it is.
      result: of local training.
      start: the global params that the site was sent.
      bound: of the update's norm.
    """
    update, was_larger = clip(uplink.added(result.params, start), bound)
    if self._noise:
      self._pay(site)
      update = noisy(update, self._noise * bound)
    params = uplink.moved(start, update, result.masks)
    metrics = {WITHIN: 0.0 if was_larger else 1.0} if self._reports else {}
    return Update(site, params, result.masks, 1, metrics)

  def _pay(self, site: str) -> None:
    """Counts one more release of the site's; it does not leave to the server what that costs."""
    budget, mechanism = self._privacy.epsilon, Mechanism(self._noise / most_moved(self._privacy))
    times = self._ledger.took_part(site) + 1
    if budget and accounting.epsilon(mechanism, times, self._privacy.delta) > budget:
      raise SiteFault(f"privacy.epsilon={budget:g} of this site is spent")
    self._ledger.charge([site])


def guard_of(config: Experiment, folder: Path) -> "Guard | None":
  """The client's half, where there is one; `folder` is for what it spends."""
  return Guard(config, Ledger(folder / LEDGER)) if is_private(config) else None
