"""What a backbone tells the loader: which Hugging Face key fills which leaf, and how."""

import enum
from typing import NamedTuple

import numpy as np


class Layout(enum.Enum):
  """How a tensor of a PyTorch checkpoint is turned for our modules."""

  SAME = "as it is"
  LINEAR = "out, in -> in, out"
  CONV = "out, in, h, w -> h, w, in, out"

  def from_torch(self, tensor: np.ndarray) -> np.ndarray:
    """Turns a tensor of the checkpoint into ours."""
    return tensor.transpose(_FROM_TORCH[self]) if self in _FROM_TORCH else tensor

  def to_torch(self, array: np.ndarray) -> np.ndarray:
    """Turns one of our arrays into the checkpoint's."""
    return array.transpose(_TO_TORCH[self]) if self in _TO_TORCH else array

  def torch_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the checkpoint's shape of one of our shapes."""
    return tuple(shape[axis] for axis in _TO_TORCH.get(self, range(len(shape))))


_FROM_TORCH = {Layout.LINEAR: (1, 0), Layout.CONV: (2, 3, 1, 0)}
_TO_TORCH = {Layout.LINEAR: (1, 0), Layout.CONV: (3, 2, 0, 1)}


class Leaf(NamedTuple):
  """One parameter of an NNX module: its path in the module's state, and its layout."""

  path: tuple[str | int, ...]
  layout: Layout = Layout.SAME


class KeyTable(NamedTuple):
  """Every key that a checkpoint of one model may hold.

  Attributes:
    leaves: Hugging Face key to the leaf that it fills; all of these must be present, or a copy.
    copies: keys that may be present and must then equal another key's tensor, or stand in for it.
    ignored: keys that may be present and mean nothing here (index buffers, unused biases).
  """

  leaves: dict[str, Leaf]
  copies: dict[str, str]
  ignored: frozenset[str]
