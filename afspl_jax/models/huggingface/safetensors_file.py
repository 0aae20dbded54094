"""Weights in a safetensors file."""

from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open


class SafetensorsFile:
  """An opened safetensors file.

  Args:
    file: the file.

  Raises:
    ValueError: it is damaged.
    OSError: it cannot be read.
  """

  def __init__(self, file: Path):
    try:
      self._file = safe_open(file, framework="np")
    except SafetensorError as error:
      raise ValueError(str(error)) from error

  def keys(self) -> list[str]:
    """The keys of all tensors."""
    return list(self._file.keys())

  def shape(self, key: str) -> tuple[int, ...]:
    """The shape of a tensor, without reading it."""
    return tuple(self._file.get_slice(key).get_shape())

  def dtype(self, key: str) -> str:
    """The storage type of a tensor, without reading it."""
    return self._file.get_slice(key).get_dtype()

  def tensor(self, key: str) -> np.ndarray:
    """Reads a tensor."""
    return self._file.get_tensor(key)
