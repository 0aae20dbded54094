"""What travels: a pytree as one flat float32 array, and its bytes as Flower serializes them.

One array, because every array is a request of its own on Flower's transport, so that a round
would cost more the more leaves a model has. What comes from a peer is checked before it is used.
"""

import io
from typing import Any

import jax
import numpy as np
from flwr.app import Array, ArrayRecord
from jaxtyping import Float32

from afspl_jax import config
from afspl_jax.types import Params

# Names of the records in a message, and of what is in them. The first three and "num-examples"
# are the defaults of Flower's own strategies and mods, so that those can be used as they are.
ARRAYS, METRICS, CONFIG = "arrays", "metrics", "config"
NUM_EXAMPLES = "num-examples"
STRUCTURE, ROUND, SITE = "structure", "round", "site"
FLAT = "flat"  # the one array of the ArrayRecord
TRAIN, HELLO = "train", "query.hello"  # message types

_EXACT_IN_FLOAT32 = ("float32", "bfloat16", "float16")
_LONGEST_HEADER = 10_000  # bytes; NumPy's own bound for the header of an array


class WireError(ValueError):
  """A payload that is not what was agreed on."""


def spec(params: Params) -> list[tuple[str, tuple[int, ...], str]]:
  """Path, shape and dtype of every leaf, in the order in which they travel.

  Raises:
    WireError: a leaf's dtype does not embed exactly in float32.
  """
  leaves = []
  for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
    name, dtype = jax.tree_util.keystr(path, simple=True, separator="/"), np.dtype(leaf.dtype).name
    if dtype not in _EXACT_IN_FLOAT32:
      raise WireError(f"{name}: expected one of {', '.join(_EXACT_IN_FLOAT32)}; got {dtype}")
    leaves.append((name, tuple(leaf.shape), dtype))
  return leaves


def structure_digest(params: Params) -> str:
  """A short hash of paths, shapes and dtypes: peers that differ in it must not exchange arrays."""
  return config.digest(spec(params))


def pack(params: Params) -> ArrayRecord:
  """The tree as one flat float32 array; `unpack` restores every leaf bit for bit.

  Args:
    params: pytree of float32, bfloat16 or float16 arrays of any shape.

  Returns:
    A record with the single array `flat`.

  Raises:
    WireError: a leaf's dtype does not embed exactly in float32.
  """
  spec(params)
  leaves = [np.asarray(x, np.float32).ravel() for x in jax.tree.leaves(jax.device_get(params))]
  return ArrayRecord({FLAT: Array(np.concatenate([np.zeros(0, np.float32), *leaves]))})


def unpack(record: ArrayRecord, template: Params) -> Params:
  """A peer's record as a tree like the template, with NumPy leaves of the template's dtypes.

  Args:
    record: what `pack` made, or what a peer claims that it made.
    template: pytree of anything with `shape` and `dtype`.

  Returns:
    A tree that shares no memory with the record.

  Raises:
    WireError: other keys, dtype or size than the template's, or a value that is not finite.
  """
  if set(record) != {FLAT}:
    raise WireError(f"expected the one array {FLAT!r}; got {sorted(record)}")
  leaves = spec(template)
  sizes = [int(np.prod(shape)) for _, shape, _ in leaves]
  flat = _decode(record[FLAT], sum(sizes))
  parts = np.split(flat, np.cumsum(sizes)[:-1]) if leaves else []
  out = []
  for part, (path, shape, dtype) in zip(parts, leaves, strict=True):
    with np.errstate(over="ignore", invalid="ignore"):  # reported just below
      leaf = part.reshape(shape).astype(dtype)
      bad = leaf.size - int(np.isfinite(leaf).sum())
    if bad:
      raise WireError(f"{path}: expected finite values; {bad} of {leaf.size} are not")
    out.append(leaf)
  return jax.tree.unflatten(jax.tree.structure(template), out)


def record_bytes(message_or_record: Any) -> int:
  """Bytes of a Flower message or record as it travels: headers and metadata are counted too."""
  return sum(map(len, serialized(message_or_record).values()))


def serialized(message_or_record: Any) -> dict[str, bytes]:
  """The objects that Flower sends for a message or record, by id; children before parents.

  Equal objects have equal ids and travel once, as on Flower's network.
  """
  objects: dict[str, bytes] = {}
  for child in (message_or_record.children or {}).values():
    objects |= serialized(child)
  objects[message_or_record.object_id] = message_or_record.deflate()
  return objects


def _decode(array: Array, size: int) -> Float32[np.ndarray, " n"]:
  """Reads an array of known size without trusting its header.

  `np.load` allocates whatever the header claims, so a small message could claim all memory.
  """
  if len(array.data) > 4 * size + _LONGEST_HEADER:
    raise WireError(f"expected about {4 * size} bytes; got {len(array.data)}")
  stream = io.BytesIO(array.data)
  try:
    version = np.lib.format.read_magic(stream)
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
  except ValueError as error:
    raise WireError(f"expected an array in .npy format: {error}") from error
  if version != (1, 0):
    raise WireError(f"expected .npy version 1.0; got {version[0]}.{version[1]}")
  if dtype != np.dtype("<f4") or shape != (size,) or fortran:
    raise WireError(f"expected float32 of shape ({size},); got {dtype} of shape {shape}")
  if len(array.data) - stream.tell() != 4 * size:
    raise WireError(f"expected {4 * size} bytes of data; got {len(array.data) - stream.tell()}")
  return np.frombuffer(array.data, "<f4", offset=stream.tell())
