"""What was spent of a privacy budget: epsilon at a delta, by dp-accounting.

Two runs are neighbours if one client (of `example_epsilon`: one example) takes part in one of them
and not in the other. What counts is how a release's participants were drawn:

- by secret coins, each with the same probability (`fed.selection=poisson`): a release is a Poisson-
  subsampled Gaussian mechanism, and nobody but a client itself knows that it took part;
- in a way that others can compute: a client pays the whole Gaussian mechanism for every release
  that it took part in, and nothing for the others. The epsilon is that of who took part most often.
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
_HARDLY = 0.03  # noise below which epsilon is in the hundreds, and Renyi's bound will do


class Mechanism(NamedTuple):
  """A release of a noisy sum in which one client's part is bounded."""

  noise: float  # standard deviation over the most that a client moves the sum, in the L2 norm
  probability: float = 1.0  # of a client, by a secret coin; 1: it is known who takes part


def epsilon(mechanism: Mechanism, times: int, delta: float, method: str = "pld") -> float:
  """The epsilon at `delta` of a number of releases.

  Args:
    mechanism: every release's.
    times: releases; where it is known who took part, those of the client in question.
    delta: from 0 to 1, both left out.
    method: "pld", by privacy loss distributions (Koskela et al. 2020; Doroshenko et al. 2022), an
      upper bound that is all but tight; "rdp", by Renyi divergences (Mironov 2017), which is looser
      and independent of it.

  Raises:
    UserError: dp-accounting is not installed.
  """
  if times == 0:
    return 0.0
  if mechanism.noise == 0:
    return math.inf
  hardly = mechanism.noise < _HARDLY * math.sqrt(times)  # the losses' table would be endless
  return _epsilon(mechanism, times, delta, "rdp" if hardly else method)


@functools.lru_cache(maxsize=256)
def _epsilon(mechanism: Mechanism, times: int, delta: float, method: str) -> float:
  dp = _library()
  accountant = dp.rdp.RdpAccountant() if method == "rdp" else _by_losses()
  accountant.compose(_event(mechanism, times))
  return float(accountant.get_epsilon(delta))


@functools.lru_cache(maxsize=16)
def noise_for(budget: float, delta: float, probability: float, times: int) -> float:
  """The least noise multiplier with which so many releases stay within a budget.

  Args:
    budget: epsilon, above 0.
    delta: as `epsilon` takes it.
    probability: of a mechanism.
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
  # Of Gaussian mechanisms the composition is one, exactly; this spares the others' convolution.
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
