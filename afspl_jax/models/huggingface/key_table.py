"""Key tables: which tensor of a Hugging Face checkpoint becomes which leaf of a module."""

import enum
from typing import NamedTuple

import numpy as np


class Layout(enum.Enum):
  """How the axes of a PyTorch tensor are permuted for our modules."""

  SAME = "as it is"
  LINEAR = "out, in -> in, out"
  CONV = "out, in, h, w -> h, w, in, out"

  def from_torch(self, tensor: np.ndarray) -> np.ndarray:
    """Permutes a tensor of the checkpoint to our order."""
    return tensor.transpose(_FROM_TORCH[self]) if self in _FROM_TORCH else tensor

  def to_torch(self, array: np.ndarray) -> np.ndarray:
    """Permutes one of our arrays to the order of the checkpoint."""
    return array.transpose(_TO_TORCH[self]) if self in _TO_TORCH else array

  def torch_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in the checkpoint for one of our shapes."""
    return tuple(shape[axis] for axis in _TO_TORCH.get(self, range(len(shape))))


_FROM_TORCH = {Layout.LINEAR: (1, 0), Layout.CONV: (2, 3, 1, 0)}
_TO_TORCH = {Layout.LINEAR: (1, 0), Layout.CONV: (3, 2, 0, 1)}


class Leaf(NamedTuple):
  """One parameter of an NNX module: its path in the module's state, and its layout."""

  path: tuple[str | int, ...]
  layout: Layout = Layout.SAME


class KeyTable(NamedTuple):
  """Every key that a checkpoint of one model may have.

  Attributes:
    leaves: Hugging Face key to leaf; each key, or a copy of it, must be present.
    copies: optional keys, each with the key whose tensor it must equal and may replace.
    ignored: optional keys that are not used (index buffers, unused biases).
  """

  leaves: dict[str, Leaf]
  copies: dict[str, str]
  ignored: frozenset[str]
