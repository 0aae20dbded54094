"""The client's half of client-level privacy; the server's half is server_release.py.

A client bounds its update, adds noise if no server is trusted (privacy.dp=local), and sends neither
metrics nor its number of examples: all clients have the same weight.
"""

import math
from pathlib import Path
from typing import Any

from afspl_jax.config.experiment import Experiment
from afspl_jax.federation.contracts import WITHIN, SiteSpent, Update
from afspl_jax.federation.privacy import accounting
from afspl_jax.federation.privacy.accounting import Mechanism
from afspl_jax.federation.privacy.budget import LEDGER, is_private, most_moved, noise_multiplier
from afspl_jax.federation.privacy.clipping import clip
from afspl_jax.federation.privacy.ledger import Ledger
from afspl_jax.federation.privacy.noise import noisy
from afspl_jax.federation.protocol import uplink
from afspl_jax.federation.protocol.wire import WireError
from afspl_jax.types import Params


class UpdateClipping:
  """Bounds a client's update, and adds the client's own noise.

  Args:
    config: the experiment's.
    ledger: counts the releases with noise that the client adds itself.
  """

  def __init__(self, config: Experiment, ledger: Ledger):
    self._privacy, self._ledger = config.privacy, ledger
    self._noise = noise_multiplier(config) if config.privacy.dp == "local" else 0.0
    self._reports = config.privacy.clipping == "adaptive"

  def agreed_bound(self, sent: Any) -> float:
    """The bound of a round that the server sent.

    Raises:
      WireError: it is not what was agreed on.
    """
    fixed = self._privacy.clip
    if not (isinstance(sent, float) and 0 < sent < math.inf and (self._reports or sent == fixed)):
      raise WireError(f"clip: expected {'above 0' if self._reports else fixed}; got {sent!r}")
    return sent

  def apply(self, update: Update, start: Params, bound: float) -> Update:
    """The update as it may be sent.

    Args:
      update: of local training.
      start: the global params that the site was sent.
      bound: of the update's norm.
    """
    added, was_larger = clip(uplink.added(update.params, start), bound)
    if self._noise:
      self._pay(update.site)
      added = noisy(added, self._noise * bound)
    params = uplink.moved(start, added, update.masks)
    metrics = {WITHIN: 0.0 if was_larger else 1.0} if self._reports else {}
    return Update(update.site, params, update.masks, 1, metrics)

  def _pay(self, site: str) -> None:
    """Counts one more release; the site itself enforces its budget."""
    budget, mechanism = self._privacy.epsilon, Mechanism(self._noise / most_moved(self._privacy))
    times = self._ledger.took_part(site) + 1
    if budget and accounting.epsilon(mechanism, times, self._privacy.delta) > budget:
      raise SiteSpent(f"privacy.epsilon={budget:g} of this site is spent")
    self._ledger.charge([site])


def clipping_of(config: Experiment, folder: Path) -> UpdateClipping | None:
  """The client's half, if updates are private; `folder` gets the account of what is spent."""
  return UpdateClipping(config, Ledger(folder / LEDGER)) if is_private(config) else None
