"""Weights of transformers' former Flax models, as flax.serialization wrote them.

The file is mapped into memory and only its structure is read: neither the file, nor what it claims
to contain, takes memory before a tensor is asked for. flax.serialization itself needs the memory of
all tensors twice, and accepts more types.
"""

import math
import mmap
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

_ARRAYS = (1, 3)  # the extension types of flax.serialization for an array and for NumPy's scalars
_CHUNKED = "__msgpack_chunked_array__"  # of an array above 1 GiB, which is in several parts
_DTYPES = {  # NumPy's name to that of safetensors
  "float32": "F32",
  "float16": "F16",
  "bfloat16": "BF16",
  "float64": "F64",
  "int32": "I32",
  "int64": "I64",
  "uint32": "U32",
  "uint8": "U8",
  "bool": "BOOL",
}
# A real key has up to 9 names, and the largest model some thousands of tensors.
_DEEPEST, _MOST_NAMES, _LONGEST_NAME, _MOST_AXES = 16, 1 << 16, 200, 8

# Values that are read here, by their first byte: their kind, and how many bytes of size follow.
_KINDS = {
  **{0xC4 + i: ("bytes", 1 << i) for i in range(3)},
  **{0xC7 + i: ("extension", 1 << i) for i in range(3)},
  **{0xCC + i: ("number", 1 << i) for i in range(4)},
  **{0xD9 + i: ("text", 1 << i) for i in range(3)},
  **{0xDC + i: ("list", 2 << i) for i in range(2)},
  **{0xDE + i: ("map", 2 << i) for i in range(2)},
}
# Those whose first byte contains the size: their kind and size.
_SHORT = {
  **{i: ("number", i) for i in range(0x80)},
  **{0x80 + i: ("map", i) for i in range(16)},
  **{0x90 + i: ("list", i) for i in range(16)},
  **{0xA0 + i: ("text", i) for i in range(32)},
  0xC3: ("true", 0),
  **{0xD4 + i: ("extension", 1 << i) for i in range(5)},
}


class _Part(NamedTuple):
  """Where numbers are in the file."""

  shape: tuple[int, ...]
  dtype: str  # NumPy's name
  start: int


class _Stored(NamedTuple):
  """A tensor in the file."""

  shape: tuple[int, ...]
  dtype: str  # NumPy's name
  parts: tuple[_Part, ...]
  kernel: bool  # whether its axes are in another order than PyTorch's


class FlaxFile:
  """An opened file, whose tensors have the keys and the axes of PyTorch.

  Args:
    file: the file.

  Raises:
    ValueError: it is damaged, or has something else than named arrays.
    OSError: it cannot be read.
  """

  def __init__(self, file: Path):
    with file.open("rb") as opened:
      self._data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)  # ValueError if empty
    self._stored: dict[str, _Stored] = {}
    for path, found in _flat(_Structure(self._data).tree, ()):
      key = torch_key("/".join(path))
      if key in self._stored:
        raise ValueError(f"{key!r} twice")
      self._stored[key] = found._replace(kernel=path[-1] == "kernel")

  def keys(self) -> list[str]:
    """The keys of all tensors."""
    return list(self._stored)

  def shape(self, key: str) -> tuple[int, ...]:
    """The shape of a tensor, without reading it."""
    found = self._stored[key]
    return tuple(found.shape[axis] for axis in _axes(found))

  def dtype(self, key: str) -> str:
    """The storage type of a tensor as safetensors calls it."""
    return _DTYPES[self._stored[key].dtype]

  def tensor(self, key: str) -> np.ndarray:
    """Reads a tensor."""
    found = self._stored[key]
    dtype = _numpy_dtype(found.dtype)
    parts = [
      np.frombuffer(self._data, dtype, math.prod(part.shape), part.start) for part in found.parts
    ]
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return whole.reshape(found.shape).transpose(_axes(found))


def torch_key(key: str) -> str:
  """The name in PyTorch of a parameter, by transformers' modeling_flax_pytorch_utils.

  Args:
    key: names in each other, with "/" between them.
  """
  *modules, last = key.split("/")
  last = "weight" if last in ("kernel", "scale", "embedding") else last
  return ".".join([*modules, last])


def _axes(found: _Stored) -> tuple[int, ...]:
  """The order of PyTorch's axes: Flax's kernels have inputs before outputs, after height, width."""
  dims = len(found.shape)
  if not found.kernel:
    return tuple(range(dims))
  return (3, 2, 0, 1) if dims == 4 else tuple(reversed(range(dims)))


def _numpy_dtype(name: str) -> np.dtype:
  return np.dtype(jnp.bfloat16 if name == "bfloat16" else name)


def _flat(tree: dict, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], _Stored]]:
  """All tensors with their names."""
  found = []
  for name, value in tree.items():
    place = (*path, name)
    if isinstance(value, _Part):
      found.append((place, _Stored(value.shape, value.dtype, (value,), False)))
    elif isinstance(value, dict):
      whole = _CHUNKED in value
      found += [(place, _joined(value, place))] if whole else _flat(value, place)
    else:
      raise ValueError(f"{value!r} at {'/'.join(place)!r}, where an array must be")
  return found


def _joined(tree: dict, place: tuple[str, ...]) -> _Stored:
  """A tensor that was written in several parts."""
  shape, parts = (_in_order(tree.get(name)) for name in ("shape", "chunks"))
  fine = (
    tree.keys() == {_CHUNKED, "shape", "chunks"}
    and 0 < len(shape) <= _MOST_AXES
    and all(type(size) is int for size in shape)
    and all(isinstance(part, _Part) and len(part.shape) == 1 for part in parts)
    and len({part.dtype for part in parts}) == 1
    and sum(part.shape[0] for part in parts) == math.prod(shape)
  )
  if not fine:
    raise ValueError(f"parts that do not make one array at {'/'.join(place)!r}")
  return _Stored(shape, parts[0].dtype, parts, False)


def _in_order(numbered: object) -> tuple:
  """The values of a map whose keys are "0", "1" and so on; () if they are not."""
  if not isinstance(numbered, dict) or list(numbered) != [str(i) for i in range(len(numbered))]:
    return ()
  return tuple(numbered.values())


class _Structure:
  """Reads the maps of a file, with the places of its arrays.

  Attributes:
    tree: name to map, `_Part`, number or True.

  Raises:
    ValueError: the file is damaged, nested too deep, too large, or has a value of a type that
      Flax does not write.
  """

  def __init__(self, data: mmap.mmap):
    self._data, self._at, self._names = data, 0, 0
    tree = self._value(0)
    if not isinstance(tree, dict):
      raise ValueError("no map at its beginning")
    if self._at != len(data):
      raise ValueError(f"{len(data) - self._at} bytes after its end")
    self.tree: dict = tree

  def _value(self, depth: int) -> object:
    kind, size = self._head("map", "extension", "number", "true")
    if kind == "map":
      return self._map(size, depth + 1)
    if kind == "extension":
      return self._array(size)
    return size if kind == "number" else True

  def _map(self, size: int, depth: int) -> dict:
    self._names += size
    if depth > _DEEPEST or self._names > _MOST_NAMES:
      raise ValueError(f"more than {_DEEPEST} maps in each other, or {_MOST_NAMES} names")
    found: dict = {}
    for _ in range(size):
      name = self._text()
      if name in found:
        raise ValueError(f"{name!r} twice in one map")
      found[name] = self._value(depth)
    return found

  def _array(self, size: int) -> _Part:
    """An extension with a list of shape, type and bytes."""
    type_, end = self._number(1), self._at + size
    if type_ not in _ARRAYS:
      raise ValueError(f"extension type {type_}, which is no array")
    if self._head("list") != ("list", 3):
      raise ValueError("an array without shape, type and bytes")
    _, axes = self._head("list")
    if axes > _MOST_AXES:
      raise ValueError(f"an array of {axes} axes")
    shape = tuple(self._head("number")[1] for _ in range(axes))
    dtype = self._text()
    if dtype not in _DTYPES:
      raise ValueError(f"an array of type {dtype!r}")
    _, held = self._head("bytes")
    wanted = math.prod(shape) * _numpy_dtype(dtype).itemsize
    if held != wanted or self._at + held != end:
      raise ValueError(f"{held} bytes for an array of shape {shape} and type {dtype}")
    return _Part(shape, dtype, self._skip(held))

  def _text(self) -> str:
    _, size = self._head("text")
    if size > _LONGEST_NAME:
      raise ValueError(f"a name of {size} bytes")
    start = self._skip(size)
    return self._data[start : start + size].decode("utf-8")  # UnicodeDecodeError is a ValueError

  def _head(self, *wanted: str) -> tuple[str, int]:
    """Reads the kind of a value, and its size in bytes or values; of a number, the number."""
    first = self._number(1)
    kind, size = _SHORT.get(first, ("", 0))
    if first in _KINDS:
      kind, width = _KINDS[first]
      size = self._number(width)
    if kind not in wanted:
      raise ValueError(f"byte {first:#04x} at {self._at}, expected {' or '.join(wanted)}")
    return kind, size

  def _number(self, width: int) -> int:
    start = self._skip(width)
    return int.from_bytes(self._data[start : start + width], "big")

  def _skip(self, size: int) -> int:
    """Goes on by some bytes, which must be there, and returns where they begin."""
    start = self._at
    if size > len(self._data) - start:
      raise ValueError(f"its end at {len(self._data)}, within a value")
    self._at = start + size
    return start
