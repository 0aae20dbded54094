"""The random part of DP-SGD: Poisson-sampled batches and noise, and the account of what they cost.

Nothing here depends on the run's seed. Whenever a round is trained, also again after a crash,
examples are sampled and noise is made from the operating system's randomness, and counted anew. The
number of a client's examples counts as public; which batch an example is in does not.
"""

import bisect
import functools
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from afspl_jax.config.experiment import Experiment
from afspl_jax.data.batches import Split
from afspl_jax.errors import UserError
from afspl_jax.federation.contracts import SiteSpent, StepNoise
from afspl_jax.federation.privacy import accounting
from afspl_jax.federation.privacy.accounting import Mechanism
from afspl_jax.federation.privacy.ledger import Ledger
from afspl_jax.federation.privacy.noise import MOST_COARSE, check_size, coarse_noise
from afspl_jax.types import Batch, Params

LEDGER = "examples.json"  # in the folder of the clients' states: each client's rounds
_LARGER = 4  # times the expected size: no Poisson batch that matters is larger
_REPEATS = 4  # a client may train so many times the run's rounds within its budget, and not more


class PoissonBatches:
  """Samples the batches of DP-SGD and its noise, and counts the rounds.

  Args:
    config: the experiment.
    data: the training split.
    clients: indices of each client's examples, by its name.
    folder: of the clients' states.

  Raises:
    UserError: dp-accounting is not installed, `privacy.delta` is too large for so many examples,
      the noise is too small for the sums, or no client's budget allows a single round.
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
    self._affordable: dict[str, int] = {}  # rounds within the budget, by client
    most = max(map(len, clients.values()))
    if config.privacy.delta * most >= 1:
      raise UserError(
        f"privacy.delta: expected well below 1 / {most}, the examples of a client; got"
        f" {config.privacy.delta:g}"
      )
    least_noise = _LARGER * config.optim.batch_size / MOST_COARSE
    if config.privacy.example_noise < least_noise:
      raise UserError(
        f"privacy.example_noise: expected at least {least_noise:g}, because sums of gradients would"
        f" overflow; got {config.privacy.example_noise:g}. Raise it, or lower optim.batch_size"
      )
    # Fails here, and not after the first round, if the library is missing.
    accounting.epsilon(Mechanism(1.0), 1, config.privacy.delta)
    least = min(self._cost(site, 1) for site in clients) if config.privacy.example_epsilon else 0.0
    if least > config.privacy.example_epsilon:
      raise UserError(
        f"privacy.example_epsilon: expected at least {least:.3g}, the cost of one round; got"
        f" {config.privacy.example_epsilon:g}. Raise it, or raise privacy.example_noise"
      )

  def sample_batches(self, sites: Sequence[str], params: Params) -> tuple[Batch, StepNoise]:
    """Batches of the clients' local steps, `[k c b ...]`, and their noise.

    Every example is in every batch independently, with its client's probability. No sampled example
    is left out: the number of rows is a multiple of `optim.batch_size` that the largest batch fits
    into, and at least twice `optim.batch_size`, so that one compiled program serves most rounds.

    Args:
      sites: names of the clients, in the cohort's order.
      params: of one client, for their shapes.

    Raises:
      ValueError: they are more numbers than the account of the noise covers.
    """
    check_size(params)
    optim = self._config.optim
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
      self._data.sampled_batches(*each, size, rng, personal)
      for each in zip(drawn, rows, strict=True)
    ]
    noise = jax.tree.map(lambda leaf: coarse_noise((steps, len(sites), *leaf.shape)), params)
    expected = [self._probability(site) * len(self._clients[site]) for site in sites]
    step_noise = StepNoise(noise, jnp.asarray(expected, jnp.float32))
    return stacked(batches, axis=1), step_noise

  def afford(self, site: str) -> None:
    """Checks that the budget of the client's examples allows another round.

    Raises:
      SiteSpent: it does not.
    """
    if (budget := self._config.privacy.example_epsilon) and self._rounds_left(site) <= 0:
      raise SiteSpent(f"privacy.example_epsilon={budget:g} of this site is spent")

  def charge(self, site: str) -> None:
    """Counts a round of the client; call it before anything of the round is sent."""
    self._ledger.charge([site])

  def epsilon(self, site: str, rounds: int = 0) -> float:
    """The epsilon of one example of the client at `privacy.delta`, after `rounds` more rounds.

    Neighbouring data sets differ by one example. Two examples of one image count as two.
    """
    return self._cost(site, self._ledger.took_part(site) + rounds)

  def spent_text(self) -> str:
    """The largest epsilon of any client, for the user."""
    privacy = self._config.privacy
    spent = {site: self.epsilon(site) for site in self._clients}
    most = max(spent, key=lambda site: spent[site])
    return (
      f"DP-SGD: epsilon {spent[most]:.3g} at delta {privacy.delta:g} for an example of {most}, who"
      f" trained {self._ledger.took_part(most)} rounds; no other's is larger"
    )

  def _cost(self, site: str, rounds: int) -> float:
    privacy, times = self._config.privacy, rounds * self._config.optim.local_steps
    mechanism = Mechanism(privacy.example_noise, self._probability(site))
    return accounting.epsilon(mechanism, times, privacy.delta)

  def _rounds_left(self, site: str) -> int:
    """The rounds that the budget allows, found once for each client: a cost takes up to 0.1 s."""
    if site not in self._affordable:
      planned = range(1, _REPEATS * self._config.fed.rounds + 1)
      budget, cost = self._config.privacy.example_epsilon, functools.partial(self._cost, site)
      self._affordable[site] = bisect.bisect_right(planned, budget, key=cost)
    return self._affordable[site] - self._ledger.took_part(site)

  def _probability(self, site: str) -> float:
    """The probability of an example to be in a batch: `optim.batch_size` are expected, or all."""
    return min(1.0, self._config.optim.batch_size / len(self._clients[site]))


def stacked(trees: Sequence[Any], axis: int = 0) -> Any:
  """Leaves of equal trees, stacked."""
  return jax.tree.map(lambda *leaves: np.stack(leaves, axis=axis), *trees)
