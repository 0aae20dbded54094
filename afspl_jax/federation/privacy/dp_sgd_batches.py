"""What DP-SGD needs of its client besides the step (dpsgd.py): secret draws, noise, an account.

Nothing here follows from the run's seed. Whenever a round is trained, also again after a crash,
examples are drawn and noise is made from the operating system's randomness, and it is counted anew.
How many examples a client has is taken as known to all; which batch an example is in is not.
"""

import math
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from afspl_jax.config.experiment import Experiment, expect
from afspl_jax.data.batches import Split
from afspl_jax.errors import UserError
from afspl_jax.federation import strategies
from afspl_jax.federation.privacy import accounting
from afspl_jax.federation.privacy.accounting import Mechanism
from afspl_jax.federation.privacy.dp_sgd_step import StepNoise
from afspl_jax.federation.privacy.ledger import Ledger
from afspl_jax.federation.privacy.noise import gaussian
from afspl_jax.types import Batch, Params

LEDGER = "examples.json"  # in the folder of the clients' states: the rounds that each trained


def check(config: Experiment, strategy: strategies.Strategy) -> None:
  """Refuses what would tell of an example past the noise.

  Raises:
    UserError: naming the field, what it may be, and what it is.
  """
  privacy, optim = config.privacy, config.optim
  clip, noise = privacy.example_clip, privacy.example_noise
  expect("privacy.example_clip", clip, 0 <= clip < math.inf, "0 or more")
  if not clip:
    return
  with_it = "with privacy.example_clip, since"
  for name, value, holds, expected in (
    ("privacy.example_noise", noise, 0 < noise < math.inf, f"above 0 {with_it} it is its promise"),
    ("optim.balance", optim.balance, not optim.balance, f"0 {with_it} the pool's load is of many"),
    ("optim.contrast", optim.contrast, not optim.contrast, f"0 {with_it} it compares examples"),
    (
      "fed.strategy",
      config.fed.strategy,
      not (isinstance(strategy, strategies.Controlled) or strategies.of_losses(strategy)),
      f"one without controls and losses {with_it} these are sent as they are",
    ),
    (
      "fed.selection",
      config.fed.selection,
      config.fed.selection != "power_of_choice",
      f"another {with_it} losses are not sent",
    ),
  ):
    expect(name, value, holds, expected)


class PoissonBatches:
  """Draws the batches of DP-SGD and its noise, and keeps count.

  Args:
    config: the experiment.
    data: the training split.
    clients: indices of each client's examples, by its name.
    folder: of the clients' states.

  Raises:
    UserError: dp-accounting is not installed, or `privacy.delta` says nothing of so many examples.
  """

  def __init__(
    self,
    config: Experiment,
    data: Split,
    clients: Mapping[str, Int[np.ndarray, " examples"]],
    folder: Path,
  ):
    self._config, self._data, self._clients = config, data, clients
    self._ledger = Ledger(folder / LEDGER)
    most = max(map(len, clients.values()))
    if config.privacy.delta * most >= 1:
      raise UserError(
        f"privacy.delta: expected well below 1 / {most}, the examples of a client; got"
        f" {config.privacy.delta:g}"
      )
    accounting.epsilon(Mechanism(1.0), 1, config.privacy.delta)  # before the first round, if at all

  def sample_batches(self, sites: Sequence[str], params: Params) -> tuple[Batch, StepNoise]:
    """Batches of the clients' local steps, `[k c b ...]`, and what else the step needs.

    Every example is in every batch with a client's own probability, whatever else is. All that were
    drawn are in it: there are as many rows as the largest batch of all asks for, in whole
    `optim.batch_size`, and twice that as a rule, so that one compiled program does for most.

    Args:
      sites: names of the clients, in the cohort's order.
      params: of one client, for their shapes.
    """
    optim, privacy = self._config.optim, self._config.privacy
    steps = optim.local_steps
    rng = np.random.Generator(np.random.PCG64DXSM(secrets.randbits(256)))
    rows = [self._clients[site] for site in sites]
    drawn = [
      rng.random((steps, len(each))) < self._probability(site)
      for each, site in zip(rows, sites, strict=True)
    ]
    largest = max(int(each.sum(axis=1).max()) for each in drawn)
    usual = 1 if all(self._probability(site) == 1 for site in sites) else 2
    size = optim.batch_size * max(usual, -(-largest // optim.batch_size))
    personal = 1.0 - self._config.prompter.local_drop
    batches = [
      self._data.drawn_batches(*each, size, rng, personal) for each in zip(drawn, rows, strict=True)
    ]
    std = privacy.example_clip * privacy.example_noise

    def noise(leaf: Any) -> Any:
      return gaussian((steps, len(sites), *leaf.shape), std).astype(np.float32)

    expected = [self._probability(site) * len(self._clients[site]) for site in sites]
    secret = StepNoise(jax.tree.map(noise, params), jnp.asarray(expected, jnp.float32))
    return stacked(batches, axis=1), secret

  def charge(self, site: str) -> None:
    """Counts a round of the client; to be done before anything of it leaves."""
    self._ledger.charge([site])

  def epsilon(self, site: str, rounds: int = 0) -> float:
    """What one example of the client has spent at `privacy.delta`, or would with more rounds.

    Examples of the same image are different ones. Neighbours are two data sets of which one has
    an example more.
    """
    privacy = self._config.privacy
    times = (self._ledger.took_part(site) + rounds) * self._config.optim.local_steps
    mechanism = Mechanism(privacy.example_noise, self._probability(site))
    return accounting.epsilon(mechanism, times, privacy.delta)

  def spent_text(self) -> str:
    """What the client spent that spent most, for the user."""
    privacy = self._config.privacy
    spent = {site: self.epsilon(site) for site in self._clients}
    most = max(spent, key=lambda site: spent[site])
    return (
      f"DP-SGD: epsilon {spent[most]:.3g} at delta {privacy.delta:g} for an example of {most}, who"
      f" trained {self._ledger.took_part(most)} rounds; no other's is larger"
    )

  def _probability(self, site: str) -> float:
    """With which an example is in a batch: `optim.batch_size` of them are expected, or all."""
    return min(1.0, self._config.optim.batch_size / len(self._clients[site]))


def stacked(trees: Sequence[Any], axis: int = 0) -> Any:
  """Leaves of equal trees, stacked."""
  return jax.tree.map(lambda *leaves: np.stack(leaves, axis=axis), *trees)
