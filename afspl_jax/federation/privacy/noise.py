"""The source of all privacy noise: Gaussian numbers that nobody can predict or repeat.

Every call takes a new key from the operating system, so noise is never reused: a round that is
repeated after a crash has other noise, and is another release (ledger.py). The stream is AES-256 in
counter mode, because the state of NumPy's or JAX's generators can be computed from their output.
"""

import math
import os

import jax
import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from jaxtyping import Float64
from scipy.special import ndtri

from afspl_jax.types import Params

_DIGITS = 10  # binary digits of the standard deviation that are kept


def gaussian(shape: tuple[int, ...], std: float) -> Float64[np.ndarray, "..."]:
  """Independent normal numbers of mean 0, by the inverse of the normal distribution.

  A number takes 52 random bits, the most with which float64 stays between 0 and 1. So no number is
  more than 8.2 standard deviations from 0; the true distribution has 2e-16 of its mass there.

  Args:
    shape: of the array.
    std: their standard deviation; 0 gives zeros.
  """
  size = math.prod(shape)
  stream = Cipher(algorithms.AES256(os.urandom(32)), modes.CTR(bytes(16))).encryptor()
  bits = np.frombuffer(stream.update(bytes(8 * size)), np.uint64)
  uniform = ((bits >> np.uint64(12)) + 0.5) * 2.0**-52
  return np.asarray(std * ndtri(uniform).reshape(shape))


def grid(std: float) -> float:
  """The step of the grid that noisy values are rounded to: a power of two, at most std / 1000.

  Floating-point noise has gaps, so that the low digits of a noisy number can reveal the number
  without noise (Mironov 2012, "On Significance of the Least Significant Bits for Differential
  Privacy"). Rounding to the grid removes these digits.

  Args:
    std: of the noise, above 0.
  """
  return 2.0 ** (math.floor(math.log2(std)) - _DIGITS)


def snapped(values: Float64[np.ndarray, "..."], std: float) -> Float64[np.ndarray, "..."]:
  """Noisy values, rounded to the noise's grid; unchanged if `std` is 0.

  The error of `gaussian` moves a number to another point of the grid with a probability below
  2**-38. The rounding adds a ten-millionth to the variance.
  """
  if not std:
    return values
  step = grid(std)
  return np.asarray(np.round(values / step) * step)


def noisy(values: Params, std: float) -> Params:
  """A tree with independent noise on every number, in float64; unchanged if `std` is 0."""
  add = lambda leaf: np.asarray(leaf + gaussian(np.shape(leaf), std))  # noqa: E731
  return jax.tree.map(lambda leaf: snapped(add(leaf), std), values) if std else values
