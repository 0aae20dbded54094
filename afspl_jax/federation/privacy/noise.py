"""The source of all privacy noise: integers on a grid that only the noise determines.

Floating-point noise has gaps, so that the low digits of a noisy number can reveal the number
without noise (Mironov 2012, "On Significance of the Least Significant Bits for Differential
Privacy"). Here a value is first rounded to a grid, a whole number of steps. The noise is a whole
number of steps too, from the exact sampler in discrete_gaussian.py. The noisy number is a function
of their sum.

What the grid costs is in every epsilon (accounting.py):

- Rounding changes what one client does to a sum of up to `MOST_NUMBERS` numbers by at most a step
  in each, so in the L2 norm by `ROUNDED` of the standard deviation.
- Let f be the density of the normal distribution with this standard deviation, sigma steps. The
  probability of y steps is f(y); all f(y) add up to 1 but for 2 exp(-2 pi**2 sigma**2), by
  Poisson's summation formula. That of rounding a normal number to y steps is the integral of f from
  y - 1/2 to y + 1/2. The second over the first is between exp(-1 / (8 sigma**2)) and
  exp(y**2 / (8 sigma**4)), because cosh(a) <= exp(a**2 / 2). Up to 40 standard deviations, beyond
  which exp(-800) of the mass lies, its logarithm is within 2**-56. So the release is as private as
  a rounded release with normal noise, but for `UNEVEN` in epsilon: 2**-56 for each number, with
  the client and without it. (Sums move by whole steps, as rounding before the noise ensures.)
"""

import math

import jax
import numpy as np
from jaxtyping import Int32

from afspl_jax.federation.privacy.discrete_gaussian import discrete_gaussian
from afspl_jax.types import Params

_SIGMA_BITS = 32  # the standard deviation is 2**32 steps
_COARSE_BITS = 16
MOST_COARSE = 2 ** (31 - _COARSE_BITS)  # standard deviations: larger sums do not fit 32 bits
MOST_NUMBERS = 2**26  # in a release
ROUNDED = 2.0**-18  # sqrt(MOST_NUMBERS) steps, and as much again for a second release of a round
UNEVEN = 2.0**-29  # 2 * MOST_NUMBERS * 2**-56
_MOST_STEPS = 2.0**62  # of a value; as many again are left for the noise


def noisy(values: Params, std: float) -> Params:
  """A tree with independent noise on every number, in float64; unchanged if `std` is 0.

  Args:
    values: a tree of finite numbers.
    std: the standard deviation of the noise.

  Raises:
    ValueError: there are too many numbers for the account, or a number is too large for the noise.
  """
  if not std:
    return values
  check_size(values)
  return jax.tree.map(lambda leaf: _noisy_leaf(np.asarray(leaf, np.float64), std), values)


def check_size(values: Params) -> None:
  """Checks that a release has no more numbers than its account covers.

  Args:
    values: the tree that is released.

  Raises:
    ValueError: it has more.
  """
  size = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(values))
  if size > MOST_NUMBERS:
    raise ValueError(f"noise: expected at most {MOST_NUMBERS:,} numbers in a release; got {size:,}")


def coarse_noise(shape: tuple[int, ...]) -> Int32[np.ndarray, "..."]:
  """Noise for sums of 32-bit integers: the standard deviation is 2**16 steps.

  It is that of `noisy`, rounded to every 2**16th step. A sum on this coarser grid with this noise
  is the same sum with the finer noise, rounded: so its account is the same. A sum beyond
  `MOST_COARSE` standard deviations overflows; it is useless then, but no less private.

  Args:
    shape: of the array.
  """
  fine = discrete_gaussian(math.prod(shape), _SIGMA_BITS)
  shift = _SIGMA_BITS - _COARSE_BITS
  return ((fine + (1 << (shift - 1))) >> shift).astype(np.int32).reshape(shape)


def coarse_step(std: float) -> float:
  """The step of a grid on which `coarse_noise` has the standard deviation `std`."""
  return std / 2**_COARSE_BITS


def _noisy_leaf(values: np.ndarray, std: float) -> np.ndarray:
  step = std / 2**_SIGMA_BITS
  steps = np.rint(values / step)
  if not np.all(np.abs(steps) < _MOST_STEPS):
    largest = np.abs(values).max()
    raise ValueError(f"noise: expected numbers below {_MOST_STEPS * step:g}; got {largest:g}")
  noise = discrete_gaussian(steps.size, _SIGMA_BITS).reshape(steps.shape)
  return np.asarray((steps.astype(np.int64) + noise) * step)
