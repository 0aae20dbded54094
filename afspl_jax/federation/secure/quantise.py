"""Updates as integers that can be summed under masks, with bounds so that no sum overflows.

A client's update is a vector of floats. It sends `weight * round(update / step)`, the weight, and
other counts if there are any, each from 0 to the weight. All are summed modulo 256**width, where
width is the smallest number of bytes that holds every possible sum.

Rounding is to the nearest step, so that a client's error is at most half a step per number, without
any randomness. Rounding can make a vector longer than the bound of differential privacy. So a
vector is first clipped to the bound minus the largest error of rounding.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt, UInt8

EXACT = 2**53  # integers up to it are float64s
_MOST_LOST = 0.1  # largest share of the bound that is reserved for rounding


class Sum(NamedTuple):
  """The sum of the clients' integers."""

  values: Float[np.ndarray, " n"]  # sum over clients of weight * update, up to rounding
  weight: int  # sum of the weights
  counts: tuple[int, ...]  # sums of the other counts


@dataclass(frozen=True)
class Quantiser:
  """Converts floats to integers and back in one round; client and server make equal ones.

  Attributes:
    size: floats in an update.
    bound: the largest L2 norm of an update as it is sent; above 0.
    bits: a float is one of 2**bits steps from -bound to bound.
    clients: number of clients that may send an update.
    max_weight: the largest weight of a client.
    counts: number of other counts that are summed.

  Raises:
    ValueError: float64 cannot hold every sum, or rounding takes too much of the bound.
  """

  size: int
  bound: float
  bits: int
  clients: int
  max_weight: int
  counts: int = 0

  def __post_init__(self):
    if not (math.isfinite(self.bound) and self.bound > 0):
      raise ValueError(f"clip: expected a finite number above 0; got {self.bound!r}")
    if self._largest > EXACT:
      raise ValueError(
        f"secure.bits: {self.clients} clients of weight up to {self.max_weight} with {self.bits}"
        f" bits: expected sums up to 2**53; got up to 2**{math.log2(self._largest):.1f}. Lower"
        " secure.bits or fed.max_examples"
      )
    if self.margin > _MOST_LOST * self.bound:
      raise ValueError(
        f"secure.bits: expected so many that rounding {self.size} numbers takes at most"
        f" {_MOST_LOST:.0%} of the bound; with {self.bits} it takes"
        f" {self.margin / self.bound:.0%}. Raise secure.bits"
      )

  @property
  def step(self) -> float:
    """The distance between two integers, as a float."""
    return self.bound / 2 ** (self.bits - 1)

  @property
  def margin(self) -> float:
    """The largest amount that rounding adds to the norm of a vector."""
    return self.step / 2 * math.sqrt(self.size)

  @property
  def length(self) -> int:
    """Integers that a client sends."""
    return self.size + 1 + self.counts

  @property
  def width(self) -> int:
    """Bytes of one integer as it is sent: the smallest modulus in which all sums differ."""
    return -(-(2 * self._largest + 1).bit_length() // 8)

  @property
  def word(self) -> np.dtype:
    """The dtype of calculations: its overflow is a multiple of the modulus."""
    return np.dtype(np.uint32 if self.width <= 4 else np.uint64)

  @property
  def _largest(self) -> int:
    return self.clients * self.max_weight * 2 ** (self.bits - 1)

  def encode(
    self, update: Float[np.ndarray, " n"], weight: int, counts: tuple[int, ...] = ()
  ) -> UInt[np.ndarray, " m"]:
    """A client's update as integers.

    Args:
      update: float64, finite.
      weight: from 1 to max_weight.
      counts: each from 0 to `weight`.

    Returns:
      `length` words.

    Raises:
      ValueError: the size, weight or a count is not as agreed on, or a number is not finite.
    """
    if update.shape != (self.size,) or len(counts) != self.counts:
      got = f"{update.shape} and {len(counts)}"
      raise ValueError(f"expected {self.size} numbers and {self.counts} counts; got {got}")
    if not 1 <= weight <= self.max_weight:
      raise ValueError(f"weight: expected 1 to {self.max_weight} (fed.max_examples); got {weight}")
    if not all(0 <= count <= weight for count in counts):
      raise ValueError(f"counts: expected 0 to {weight}; got {counts}")
    norm = math.sqrt(float(np.square(update).sum()))  # without BLAS, whose threads take longer
    if not math.isfinite(norm):
      raise ValueError("expected an update of finite norm")
    # Slightly more than rounding needs, because the division is rounded, too.
    free = (self.bound - self.margin) * (1 - 2.0**-40)
    scale = min(1.0, free / norm if norm else 1.0)
    steps = np.rint(update * (scale / self.step)).astype(np.int64)
    integers = np.concatenate([weight * steps, np.array([weight, *counts], np.int64)])
    return integers.astype(self.word)  # modulo the word: two's complement

  def decode(self, total: UInt[np.ndarray, " m"], clients: int) -> Sum:
    """The sum of the integers of `clients` clients, as floats.

    Raises:
      ValueError: no valid updates have this sum.
    """
    spare = 8 * (self.word.itemsize - self.width)
    signed = np.dtype(f"i{self.word.itemsize}")
    lifted = (total << self.word.type(spare)).view(signed) >> signed.type(spare)
    lifted = lifted.astype(np.int64)  # in which the least int32 has an absolute value
    weight, *counts = (int(n) for n in lifted[self.size :])
    values = lifted[: self.size] * self.step
    norm = math.sqrt(float(np.square(values).sum()))
    limit = (
      weight * self.bound * (1 + 1e-9)
    )  # of clients that all send the longest, in one direction
    if (
      not clients <= weight <= clients * self.max_weight
      or not all(0 <= count <= weight for count in counts)
      or norm > limit
    ):
      raise ValueError(
        f"expected a sum of what {clients} clients may send, of norm up to {limit:.3g}; got norm"
        f" {norm:.3g} and weight {weight}, numbers that cannot be: a client sent what it should not"
      )
    return Sum(values, weight, tuple(counts))

  def pack(self, words: UInt[np.ndarray, " m"]) -> UInt8[np.ndarray, " bytes"]:
    """The integers modulo 256**width, little-endian."""
    words = np.ascontiguousarray(words, self.word.newbyteorder("<"))
    return words.view(np.uint8).reshape(-1, self.word.itemsize)[:, : self.width].ravel()

  def unpack(self, packed: UInt8[np.ndarray, " bytes"]) -> UInt[np.ndarray, " m"]:
    """The integers of `length * width` bytes."""
    words = np.zeros((self.length, self.word.itemsize), np.uint8)
    words[:, : self.width] = packed.reshape(-1, self.width)
    return words.view(self.word.newbyteorder("<")).ravel().astype(self.word, copy=False)
