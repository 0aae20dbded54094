"""The privacy budget that was spent: epsilon at a delta, computed by dp-accounting.

Two runs are neighbours if they differ in one client (for `example_epsilon`: one example). The cost
depends on how the participants of a release are chosen:

- by Poisson sampling with a secret key (`fed.selection=poisson`): a release is a Poisson-subsampled
  Gaussian mechanism, and only a client itself knows that it took part;
- in a way that others can compute: a client pays for the full Gaussian mechanism in every release
  that it takes part in, and nothing for the others. Epsilon is that of the most frequent client.
"""

import functools
import math
from types import ModuleType
from typing import NamedTuple

from afspl_jax.errors import UserError

_TOLERANCE = 1e-3  # of a calibrated noise multiplier
# Of privacy losses; the library's default, 1e-4, takes ten times as long (0.5 s instead of 0.05 for
# 30 releases to a tenth of the clients), for an epsilon that is lower by 1e-5 (0.004 of 10,000).
_INTERVAL = 1e-3
_HARDLY = 0.03  # noise below which epsilon is in the hundreds, and the Renyi bound is sufficient


class Mechanism(NamedTuple):
  """A release of a noisy sum in which each client's contribution is bounded."""

  noise: float  # standard deviation over the largest contribution of a client, in the L2 norm
  probability: float = 1.0  # of a client in the Poisson sample; 1: participants are known


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
  """
  if times == 0:
    return 0.0
  if mechanism.noise == 0:
    return math.inf
  hardly = mechanism.noise < _HARDLY * math.sqrt(times)  # the table of losses would be huge
  return _epsilon(mechanism, times, delta, "rdp" if hardly else method)


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
    UserError: dp-accounting is not installed.
  """
  dp = _library()
  noise = dp.calibrate_dp_mechanism(
    _by_losses,
    lambda noise: _event(Mechanism(noise, probability), times),
    budget,
    delta,
    dp.LowerEndpointAndGuess(0.0, 1.0),
    tol=_TOLERANCE,
  )
  return float(noise)


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
