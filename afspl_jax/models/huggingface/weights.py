"""Loads and saves backbones as Hugging Face checkpoint folders, by their key tables."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from safetensors.numpy import save_file

from afspl_jax.models.architectures import Architecture, architectures
from afspl_jax.models.contracts import ImagePreprocessor, LanguageModel, VisionEncoder
from afspl_jax.models.huggingface.checkpoint_files import (
  CONFIG,
  Tensors,
  open_tensors,
  read_config_file,
)
from afspl_jax.models.huggingface.checkpoint_problems import BackboneError
from afspl_jax.models.huggingface.fingerprint import earlier_fingerprint, fingerprint
from afspl_jax.models.huggingface.key_table import KeyTable
from afspl_jax.models.huggingface.weight_forms import SAFETENSORS
from afspl_jax.storage.atomic_files import replaced_file

__all__ = [
  "BackboneError",
  "earlier_fingerprint",
  "fingerprint",
  "load_backbone",
  "load_image_processor",
  "load_language_model",
  "load_vision_encoder",
  "outline",
  "save_backbone",
]

_FLOATS = ("F32", "F16", "BF16", "F64")
_LARGEST = 1e6  # of a weight; those of published checkpoints are below 65,504, float16's largest


def load_backbone(
  folder: str | Path,
  *,
  dtype: DTypeLike = jnp.float32,
  param_dtype: DTypeLike = jnp.float32,
  contract: type | None = None,
) -> nnx.Module:
  """Loads the model of a checkpoint folder by the `model_type` of its config.json.

  Args:
    folder: holds config.json and weights in one of `weight_forms.FORMS`, or shards and an index.
    dtype: of the computation.
    param_dtype: in which parameters are kept; independent of the type in the file.
    contract: `VisionEncoder` or `LanguageModel`, if the model must be one.

  Returns:
    The model, with every parameter from the file; none is initialised at random.

  Raises:
    BackboneError: the folder has problems; the message names all of them.
  """
  folder, problems = Path(folder), list[str]()
  raw, tensors = read_config_file(folder, problems), open_tensors(folder, problems)
  architecture = None if raw is None else _architecture(raw, contract, problems)
  if raw is None or tensors is None or architecture is None:
    raise BackboneError(folder, problems)
  try:
    config = architecture.read_config(raw, tensors)
  except ValueError as error:
    raise BackboneError(folder, [*problems, str(error)]) from error
  graph, state = nnx.split(outline(architecture.model, config, dtype, param_dtype))
  leaves = dict(nnx.to_flat_state(state))
  table = architecture.key_table(config)
  _compare(table, leaves, tensors, problems)
  if problems:
    raise BackboneError(folder, problems)
  filled = []
  for key, (path, layout) in table.leaves.items():
    source = _source(key, table, tensors)
    tensor = tensors[source]
    if not _plausible(tensor):
      problems.append(
        f'{tensors.file(source)}: expected finite numbers of at most {_LARGEST:g} in "{source}";'
        f" got {_implausible(tensor)}. Download the file again."
      )
    array = jnp.asarray(layout.from_torch(tensor).astype(param_dtype))
    filled.append((path, leaves[path].replace(array)))
  if problems:
    raise BackboneError(folder, problems)
  return nnx.merge(graph, nnx.from_flat_state(filled))


def outline(
  model: type,
  config: Any,
  dtype: DTypeLike = jnp.float32,
  param_dtype: DTypeLike = jnp.float32,
) -> nnx.Module:
  """Builds a model whose parameters are only shapes; it needs no memory at any size.

  Args:
    model: the NNX class of a backbone.
    config: its config.
    dtype: of the computation.
    param_dtype: in which parameters would be kept.
  """
  rngs = _OneKey()
  return nnx.eval_shape(lambda: model(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs))


class _OneKey(nnx.Rngs):
  """Gives the same key every time; shapes do not depend on it.

  Tracing real random streams takes time that grows with the square of the number of draws: 4.3 s
  instead of 0.5 s for a Flan-T5-XL.
  """

  def params(self) -> jax.Array:
    return jax.random.key(0)


def load_vision_encoder(
  folder: str | Path, dtype: DTypeLike = jnp.float32, param_dtype: DTypeLike = jnp.float32
) -> VisionEncoder:
  """Loads a vision encoder; see `load`."""
  model = load_backbone(folder, dtype=dtype, param_dtype=param_dtype, contract=VisionEncoder)
  return cast(VisionEncoder, model)


def load_language_model(
  folder: str | Path, dtype: DTypeLike = jnp.float32, param_dtype: DTypeLike = jnp.float32
) -> LanguageModel:
  """Loads a language model; see `load`."""
  model = load_backbone(folder, dtype=dtype, param_dtype=param_dtype, contract=LanguageModel)
  return cast(LanguageModel, model)


def load_image_processor(folder: str | Path) -> ImagePreprocessor:
  """Loads what prepares images for the vision encoder of a checkpoint folder.

  Raises:
    BackboneError: config.json is missing, or is not that of a vision encoder.
    UserError: the settings of the image processor are missing or wrong.
  """
  folder, problems = Path(folder), list[str]()
  raw = read_config_file(folder, problems)
  architecture = None if raw is None else _architecture(raw, VisionEncoder, problems)
  if architecture is None or architecture.image_processor is None:
    raise BackboneError(folder, problems)
  return architecture.image_processor(folder)


def save_backbone(model: nnx.Module, folder: str | Path) -> None:
  """Writes config.json and model.safetensors, which transformers and `load` read.

  Args:
    model: a backbone; its parameters are stored in their own dtype.
    folder: created if it is missing; a checkpoint in it is replaced.

  Raises:
    TypeError: the model is of no known architecture.
  """
  folder = Path(folder)
  found = [
    architecture
    for architecture in architectures().values()
    if isinstance(model, architecture.model)
  ]
  if not found:
    known = ", ".join(architecture.model.__name__ for architecture in architectures().values())
    raise TypeError(f"save: expected one of {known}; got {type(model).__name__}.")
  leaves = dict(nnx.to_flat_state(nnx.state(model)))
  tensors = {
    # save_file writes the raw buffer, so a transposed view would be stored wrong. Not with
    # ascontiguousarray, which turns a scalar into a vector.
    key: np.asarray(layout.to_torch(np.asarray(leaves[path][...])), order="C")
    for key, (path, layout) in found[0].key_table(model.config).leaves.items()
  }
  dtype = next(iter(tensors.values())).dtype.name
  folder.mkdir(parents=True, exist_ok=True)
  with replaced_file(folder / SAFETENSORS.single) as scratch:
    save_file(tensors, scratch, metadata={"format": "pt"})
    scratch.chmod(0o644)  # safetensors makes it readable by its owner alone
  config = json.dumps(model.config.to_hf() | {"dtype": dtype}, indent=2, sort_keys=True)
  (folder / CONFIG).write_text(config + "\n", encoding="utf-8")


def _architecture(
  raw: Mapping[str, Any], contract: type | None, problems: list[str]
) -> Architecture | None:
  model_type = raw.get("model_type")
  known = {
    name: architecture
    for name, architecture in architectures().items()
    if contract in (None, architecture.contract)
  }
  if isinstance(model_type, str) and model_type in known:
    return known[model_type]
  wanted = " or ".join(f'"{name}"' for name in known)
  problems.append(
    f'{CONFIG}: "model_type" must be {wanted}; got {model_type!r}. Give the folder of such a model.'
  )
  return None


def _source(key: str, table: KeyTable, tensors: Tensors) -> str:
  """The key of the tensor for a leaf: its own, or that of a copy if only a copy was saved."""
  if key in tensors or key in tensors.lost:
    return key
  copies = (copy for copy, other in table.copies.items() if other == key and copy in tensors)
  return next(copies, key)


def _plausible(tensor: np.ndarray) -> bool:
  """Whether all numbers are finite and small enough for a weight.

  The bits of floats without their signs, read as integers, are in the order of their sizes, and
  those of infinity and NaN are the largest. Two passes over integers take 0.08 s a GB; NumPy's over
  bfloat16 take thirty times as long.
  """
  size = tensor.dtype.itemsize
  limit = np.array(min(_LARGEST, float(jnp.finfo(tensor.dtype).max)), tensor.dtype)
  values = tensor.reshape(-1)
  return not values.size or bool(
    values.view(f"i{size}").max() <= limit.view(f"i{size}")  # of the positive ones
    and values.view(f"u{size}").max() <= (-limit).view(f"u{size}")  # of the negative ones
  )


def _implausible(tensor: np.ndarray) -> str:
  with np.errstate(all="ignore"):
    values = tensor.astype(np.float64).reshape(-1)
  wrong = np.flatnonzero(~(np.abs(values) <= _LARGEST))
  return f"{values[wrong[0]]:g}" + (f" and {len(wrong) - 1} more" if len(wrong) > 1 else "")


def _compare(
  table: KeyTable, leaves: Mapping[tuple, Any], tensors: Tensors, problems: list[str]
) -> None:
  """Appends a problem for every difference between the model and the files."""
  for key, (path, layout) in table.leaves.items():
    source = _source(key, table, tensors)
    if source in tensors:
      wanted, got = layout.torch_shape(leaves[path].shape), tensors.shape(source)
      if got != wanted:
        problems.append(
          f'{tensors.file(source)}: expected "{source}" of shape {wanted}; got {got}. Take the'
          f" {CONFIG} that belongs to these weights."
        )
      if tensors.dtype(source) not in _FLOATS:
        problems.append(
          f'{tensors.file(source)}: expected "{source}" as one of {", ".join(_FLOATS)}; got'
          f" {tensors.dtype(source)}. Take a checkpoint that is not quantised."
        )
    elif key not in tensors.lost:
      problems.append(
        f'expected "{key}", which the {CONFIG} requires; got no such tensor. Take a checkpoint of'
        " the whole model."
      )
  for key in tensors:
    other = table.copies.get(key)
    if other is not None:
      if other in tensors and not np.array_equal(tensors[key], tensors[other], equal_nan=True):
        problems.append(
          f'{tensors.file(key)}: expected "{key}" to equal "{other}"; got other values. Take a'
          " checkpoint with one embedding matrix."
        )
    elif key not in table.leaves and key not in table.ignored:
      problems.append(
        f'{tensors.file(key)}: expected only keys that the {CONFIG} requires; got "{key}". Take the'
        f" {CONFIG} that belongs to these weights."
      )
