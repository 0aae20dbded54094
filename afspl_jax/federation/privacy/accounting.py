"""The privacy budget that was spent: epsilon at a delta, computed by dp-accounting.

Two runs are neighbours if they differ in one client (for `example_epsilon`: one example). The cost
depends on how the participants of a release are chosen:

- by Poisson sampling with a secret key (`fed.selection=poisson`): a release is a Poisson-subsampled
  Gaussian mechanism, and only a client itself knows that it took part;
- in a way that others can compute: a client pays for the full Gaussian mechanism in every release
  that it takes part in, and nothing for the others. Epsilon is that of the most frequent client.

Noise is discrete, and dp-accounting computes the epsilon of normal noise. What rounding to the
noise's grid adds to a client's contribution, and what the two distributions differ by, is added
here (noise.py has the proof).
"""

import functools
import math
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

from afspl_jax.errors import UserError
from afspl_jax.federation.privacy.noise import ROUNDED, UNEVEN

# Float64 rounds the sum of n clients by up to n**2 * 2**-53 of the bound, with the client and
# without it. For 2**17 clients, twice the most of fed.clients_per_round, this is 2**-18 together.
# Dividing by the grid's step rounds again, by less.
_SUMMED = 1 + 2.0**-17

_TOLERANCE = 1e-3  # of a calibrated noise multiplier; relative below 1
_MOST_NOISE = 2.0**18  # more does not help: rounding to the noise's own grid grows with it
# Of privacy losses; the library's default, 1e-4, takes ten times as long (0.5 s instead of 0.05 for
# 30 releases to a tenth of the clients), for an epsilon that is lower by 1e-5 (0.004 of 10,000).
_INTERVAL = 1e-3
_HARDLY = 0.03  # noise below which epsilon is in the hundreds, and the Renyi bound is sufficient


class Mechanism(NamedTuple):
  """A release of a noisy sum in which each client's contribution is bounded."""

  noise: float  # standard deviation over the largest contribution of a client, in the L2 norm
  probability: float = 1.0  # of a client in the Poisson sample; 1: participants are known

  def on_grid(self) -> "Mechanism":
    """The release with normal noise that the one on the noise's grid equals, but for `UNEVEN`."""
    return self._replace(noise=self.noise / (_SUMMED + ROUNDED * self.noise))


def epsilon(mechanism: Mechanism, times: int, delta: float, method: str = "pld") -> float:
  """The epsilon at `delta` of a number of releases.

  Args:
    mechanism: every release's.
    times: releases; if participants are known, those of the client in question.
    delta: between 0 and 1.
    method: "pld", by privacy loss distributions (Koskela et al. 2020; Doroshenko et al. 2022), an
      almost tight upper bound; "rdp", by Renyi divergences (Mironov 2017), which is looser
      and computed independently.

  Raises:
    UserError: dp-accounting is not installed.
    ValueError: an argument has no meaning.
  """
  _check(mechanism, times, delta)
  if times == 0 or mechanism.probability == 0:
    return 0.0
  if mechanism.noise == 0:
    return math.inf
  hardly = mechanism.noise < _HARDLY * math.sqrt(times)  # the table of losses would be huge
  uneven = times * UNEVEN
  at = mechanism.on_grid(), times, delta * math.exp(-uneven)
  found = _epsilon(*at, "rdp" if hardly else method)
  if math.isinf(found):  # delta is below what the table of losses cuts off
    found = _epsilon(*at, "rdp")
  return found + uneven


def _check(mechanism: Mechanism, times: int, delta: float) -> None:
  legal = {
    "noise": mechanism.noise >= 0,
    "probability": 0 <= mechanism.probability <= 1,
    "times": times >= 0,
    "delta": 0 < delta < 1,
  }
  wrong = [name for name, is_legal in legal.items() if not is_legal]
  if wrong:
    got = (*mechanism, times, delta)
    raise ValueError(
      "privacy: expected noise and times of at least 0, a probability from 0 to 1 and a delta"
      f" between 0 and 1; got {dict(zip(legal, got, strict=True))}"
    )


@functools.lru_cache(maxsize=256)
def _epsilon(mechanism: Mechanism, times: int, delta: float, method: str) -> float:
  dp = _library()
  accountant = dp.rdp.RdpAccountant() if method == "rdp" else _by_losses()
  accountant.compose(_event(mechanism, times))
  return float(accountant.get_epsilon(delta))


@functools.lru_cache(maxsize=16)
def noise_for(budget: float, delta: float, probability: float, times: int) -> float:
  """The smallest noise multiplier with which a number of releases stay within a budget.

  Args:
    budget: epsilon, above 0.
    delta: as for `epsilon`.
    probability: as of a Mechanism.
    times: releases, at least 1.

  Raises:
    UserError: no noise is enough, or dp-accounting is not installed.
  """

  def too_little(noise: float, method: str = "pld") -> bool:
    return epsilon(Mechanism(noise, probability), times, delta, method) > budget

  # Divergences take a hundredth of the time, and are never far off.
  _, rough = _bracket(lambda noise: too_little(noise, "rdp"), 1.0, 2.0)
  if rough > _MOST_NOISE:
    raise UserError(
      f"privacy.epsilon: expected a budget that {times} releases with noise can stay within; got"
      f" {budget:g}. Raise it, or set 0 for none"
    )
  low, high = _bracket(too_little, rough, 1.25)
  while high - low > _TOLERANCE * min(1.0, high):
    middle = (low + high) / 2
    low, high = (middle, high) if too_little(middle) else (low, middle)
  return high


def _bracket(
  too_little: Callable[[float], bool], start: float, factor: float
) -> tuple[float, float]:
  """A noise that is too little and, `factor` above it, one that is not, or is beyond all use."""
  high = start
  while high <= _MOST_NOISE and too_little(high):
    high *= factor
  low = high / factor
  while not too_little(low):
    low, high = low / factor, low
  return low, high


def _by_losses():
  return _library().pld.PLDAccountant(value_discretization_interval=_INTERVAL)


def _event(mechanism: Mechanism, times: int):
  dp = _library()
  if mechanism.probability < 1:
    once = dp.PoissonSampledDpEvent(mechanism.probability, dp.GaussianDpEvent(mechanism.noise))
    return dp.SelfComposedDpEvent(once, times)
  # The composition of Gaussian mechanisms is exactly one Gaussian mechanism: no convolution needed.
  return dp.GaussianDpEvent(mechanism.noise / math.sqrt(times))


def _library() -> ModuleType:
  try:
    import dp_accounting
    import dp_accounting.pld
    import dp_accounting.rdp
  except ImportError as error:
    raise UserError(
      "privacy: expected the package dp-accounting, which computes epsilon; it is not installed."
      " Run: pip install 'afspl-jax[privacy]'"
    ) from error
  return dp_accounting
