"""Reads what a GGUF file says of itself: its metadata, and the place of each tensor.

The reader in the package `gguf` trusts the file, and never ends where a list claims more than the
file has. This one takes memory for what is in the file alone.
"""

import math
import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from afspl_jax.errors import UserError

_SCALARS = {  # value type to NumPy's type
  0: "<u1",
  1: "<i1",
  2: "<u2",
  3: "<i2",
  4: "<u4",
  5: "<i4",
  6: "<f4",
  7: "?",
  10: "<u8",
  11: "<i8",
  12: "<f8",
}
_TEXT, _LIST = 8, 9
# The largest vocabularies have 2**18 tokens, and a model some thousands of tensors.
_MOST_ENTRIES, _MOST_TENSORS, _MOST_VALUES = 1 << 12, 1 << 16, 1 << 21
_LONGEST_NAME, _LONGEST_TEXT, _MOST_AXES = 1 << 8, 1 << 20, 4


class GgufTensor(NamedTuple):
  """A tensor of a GGUF file.

  Attributes:
    shape: as in PyTorch; GGUF has the axes in the opposite order.
    type: a number of `gguf.GGMLQuantizationType`.
    start: where its bytes begin in the file.
    size: how many there are.
  """

  shape: tuple[int, ...]
  type: int
  start: int
  size: int


class GgufHeader:
  """The beginning of a GGUF file.

  Args:
    file: the file.

  Attributes:
    data: the file, mapped into memory.
    metadata: a number, text, list of texts, or NumPy array for each name.
    tensors: by GGUF's name.

  Raises:
    ValueError: it is damaged, or of another version or byte order than is read here.
    OSError: it cannot be read.
    UserError: the package `gguf` is not installed.
  """

  def __init__(self, file: Path):
    gguf = _package(file)
    with file.open("rb") as opened:
      self.data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)  # ValueError if empty
    self._at, self._values = 0, 0
    if self.data[self._skip(4) : 4] != b"GGUF":
      raise ValueError("no GGUF at its beginning")
    if (version := self._integer(4)) not in (2, 3):
      raise ValueError(f"version {version}, expected 2 or 3 in little-endian order")
    tensors, entries = self._integer(8), self._integer(8)
    if tensors > _MOST_TENSORS or entries > _MOST_ENTRIES:
      raise ValueError(f"{tensors} tensors and {entries} entries")
    self.metadata: dict[str, Any] = {}
    for _ in range(entries):
      name = self._text(_LONGEST_NAME)
      if name in self.metadata:
        raise ValueError(f"{name!r} twice")
      self.metadata[name] = self._value(self._integer(4))
    sizes = {int(type_): size for type_, size in gguf.GGML_QUANT_SIZES.items()}
    infos = self._tensors(tensors)
    alignment = self.metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20:
      raise ValueError("general.alignment, which is no number of bytes")
    start = -(-self._at // alignment) * alignment
    self.tensors = {name: self._placed(name, start, *info, sizes) for name, info in infos.items()}

  def _tensors(self, count: int) -> dict[str, tuple[tuple[int, ...], int, int]]:
    """Shape, type and offset of each tensor."""
    infos: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(count):
      name, axes = self._text(_LONGEST_NAME), self._integer(4)
      if name in infos or axes > _MOST_AXES:
        raise ValueError(f"{name!r} twice, or of {axes} axes")
      shape = tuple(reversed([self._integer(8) for _ in range(axes)]))
      infos[name] = shape, self._integer(4), self._integer(8)
    return infos

  def _placed(
    self,
    name: str,
    start: int,
    shape: tuple[int, ...],
    type_: int,
    offset: int,
    sizes: dict[int, tuple[int, int]],
  ) -> GgufTensor:
    if type_ not in sizes:
      raise ValueError(f"{name!r} of type {type_}, which is not known")
    block, width = sizes[type_]
    if 0 in shape or (shape[-1] if shape else 1) % block:
      raise ValueError(f"{name!r} of shape {shape}, which blocks of {block} do not fill")
    size = math.prod(shape) // block * width
    if start + offset + size > len(self.data):
      raise ValueError(f"its end at {len(self.data)}, within {name!r}")
    return GgufTensor(shape, type_, start + offset, size)

  def _value(self, type_: int) -> Any:
    if type_ == _TEXT:
      return self._text(_LONGEST_TEXT)
    if type_ in _SCALARS:
      return self._numbers(type_, 1)[0].item()
    if type_ != _LIST:
      raise ValueError(f"a value of type {type_}")
    inner, count = self._integer(4), self._integer(8)
    self._values += count
    if self._values > _MOST_VALUES:
      raise ValueError(f"more than {_MOST_VALUES} values in lists")
    if inner == _TEXT:
      return [self._text(_LONGEST_TEXT) for _ in range(count)]
    if inner in _SCALARS:
      return self._numbers(inner, count)
    raise ValueError(f"a list of values of type {inner}")

  def _numbers(self, type_: int, count: int) -> np.ndarray:
    dtype = np.dtype(_SCALARS[type_])
    return np.frombuffer(self.data, dtype, count, self._skip(count * dtype.itemsize))

  def _text(self, longest: int) -> str:
    size = self._integer(8)
    if size > longest:
      raise ValueError(f"a text of {size} bytes")
    start = self._skip(size)
    return self.data[start : start + size].decode("utf-8")  # UnicodeDecodeError is a ValueError

  def _integer(self, width: int) -> int:
    form = "<I" if width == 4 else "<Q"
    return struct.unpack_from(form, self.data, self._skip(width))[0]

  def _skip(self, size: int) -> int:
    """Goes on by some bytes, which must be there, and returns where they begin."""
    start = self._at
    if size > len(self.data) - start:
      raise ValueError(f"its end at {len(self.data)}, within a value")
    self._at = start + size
    return start


def _package(file: Path) -> Any:
  try:
    import gguf
  except ModuleNotFoundError as error:
    raise UserError(
      f"{file}: expected the package gguf, which reads it; got none. Install it: pip install"
      " 'afspl-jax[gguf]'"
    ) from error
  return gguf
