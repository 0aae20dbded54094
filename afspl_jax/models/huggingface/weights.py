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

from afspl_jax.models.backbones import Backbone, backbones
from afspl_jax.models.contracts import ImagePreprocessor, LanguageModel, VisionEncoder
from afspl_jax.models.huggingface.checkpoint_files import (
  CONFIG,
  WEIGHTS,
  CheckpointError,
  Tensors,
  fingerprint,
  open_tensors,
  read_config,
)
from afspl_jax.models.huggingface.key_table import KeyTable
from afspl_jax.storage.atomic_files import replaced_file

__all__ = [
  "CheckpointError",
  "fingerprint",
  "load",
  "load_image_processor",
  "load_language_model",
  "load_vision_encoder",
  "outline",
  "save",
]

_FLOATS = ("F32", "F16", "BF16", "F64")


def load(
  folder: str | Path,
  *,
  dtype: DTypeLike = jnp.float32,
  param_dtype: DTypeLike = jnp.float32,
  contract: type | None = None,
) -> nnx.Module:
  """Loads the model of a checkpoint folder by the `model_type` of its config.json.

  Args:
    folder: holds config.json and model.safetensors, or shards and their index.
    dtype: of the computation.
    param_dtype: in which parameters are kept, whatever type the file stores.
    contract: `VisionEncoder` or `LanguageModel`, if the model must be one.

  Returns:
    The model, every parameter from the file; none is drawn at random on the way.

  Raises:
    CheckpointError: naming every fault of the folder at once.
  """
  folder, faults = Path(folder), list[str]()
  raw, tensors = read_config(folder, faults), open_tensors(folder, faults)
  backbone = None if raw is None else _backbone(raw, contract, faults)
  if raw is None or tensors is None or backbone is None:
    raise CheckpointError(folder, faults)
  try:
    config = backbone.read_config(raw, tensors)
  except ValueError as error:
    raise CheckpointError(folder, [*faults, str(error)]) from error
  graph, state = nnx.split(outline(backbone.model, config, dtype, param_dtype))
  leaves = dict(nnx.to_flat_state(state))
  table = backbone.key_table(config)
  _compare(table, leaves, tensors, faults)
  if faults:
    raise CheckpointError(folder, faults)
  filled = []
  for key, (path, layout) in table.leaves.items():
    tensor = tensors[_source(key, table, tensors)]
    array = jnp.asarray(layout.from_torch(tensor).astype(param_dtype))
    filled.append((path, leaves[path].replace(array)))
  return nnx.merge(graph, nnx.from_flat_state(filled))


def outline(
  model: type,
  config: Any,
  dtype: DTypeLike = jnp.float32,
  param_dtype: DTypeLike = jnp.float32,
) -> nnx.Module:
  """Builds a model whose parameters are shapes only; takes no memory at any size.

  Args:
    model: the NNX class of a backbone.
    config: its config.
    dtype: of the computation.
    param_dtype: in which parameters would be kept.
  """
  rngs = _OneKey()
  return nnx.eval_shape(lambda: model(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs))


class _OneKey(nnx.Rngs):
  """Gives the same key every time, for shapes do not depend on it.

  The counter of a real one costs time that grows with the square of its draws while tracing:
  4.3 s against 0.5 s for a Flan-T5-XL.
  """

  def params(self) -> jax.Array:
    return jax.random.key(0)


def load_vision_encoder(
  folder: str | Path, dtype: DTypeLike = jnp.float32, param_dtype: DTypeLike = jnp.float32
) -> VisionEncoder:
  """Loads a vision encoder; see `load`."""
  model = load(folder, dtype=dtype, param_dtype=param_dtype, contract=VisionEncoder)
  return cast(VisionEncoder, model)


def load_language_model(
  folder: str | Path, dtype: DTypeLike = jnp.float32, param_dtype: DTypeLike = jnp.float32
) -> LanguageModel:
  """Loads a language model; see `load`."""
  model = load(folder, dtype=dtype, param_dtype=param_dtype, contract=LanguageModel)
  return cast(LanguageModel, model)


def load_image_processor(folder: str | Path) -> ImagePreprocessor:
  """Loads what prepares images for the vision encoder of a checkpoint folder.

  Raises:
    CheckpointError: config.json is missing, or is not that of a vision encoder.
    UserError: the settings of the image processor are missing or wrong.
  """
  folder, faults = Path(folder), list[str]()
  raw = read_config(folder, faults)
  backbone = None if raw is None else _backbone(raw, VisionEncoder, faults)
  if backbone is None or backbone.image_processor is None:
    raise CheckpointError(folder, faults)
  return backbone.image_processor(folder)


def save(model: nnx.Module, folder: str | Path) -> None:
  """Writes config.json and model.safetensors, which transformers and `load` read.

  Args:
    model: a backbone; its parameters are stored in the type that they have.
    folder: made if it is missing; a checkpoint in it is replaced.

  Raises:
    TypeError: if the model is no backbone.
  """
  folder = Path(folder)
  found = [backbone for backbone in backbones().values() if isinstance(model, backbone.model)]
  if not found:
    known = ", ".join(backbone.model.__name__ for backbone in backbones().values())
    raise TypeError(f"save: expected one of {known}; got {type(model).__name__}.")
  leaves = dict(nnx.to_flat_state(nnx.state(model)))
  tensors = {
    # save_file writes the buffer as it lies, so that a transposed view would be stored wrong.
    # Not by ascontiguousarray, which turns a scalar into a vector.
    key: np.asarray(layout.to_torch(np.asarray(leaves[path][...])), order="C")
    for key, (path, layout) in found[0].key_table(model.config).leaves.items()
  }
  dtype = next(iter(tensors.values())).dtype.name
  folder.mkdir(parents=True, exist_ok=True)
  with replaced_file(folder / WEIGHTS) as scratch:
    save_file(tensors, scratch, metadata={"format": "pt"})
    scratch.chmod(0o644)  # safetensors makes it readable by its owner alone
  config = json.dumps(model.config.to_hf() | {"dtype": dtype}, indent=2, sort_keys=True)
  (folder / CONFIG).write_text(config + "\n", encoding="utf-8")


def _backbone(raw: Mapping[str, Any], contract: type | None, faults: list[str]) -> Backbone | None:
  model_type = raw.get("model_type")
  known = {
    name: backbone
    for name, backbone in backbones().items()
    if contract in (None, backbone.contract)
  }
  if isinstance(model_type, str) and model_type in known:
    return known[model_type]
  wanted = " or ".join(f'"{name}"' for name in known)
  faults.append(
    f'{CONFIG}: "model_type" must be {wanted}; got {model_type!r}. Give the folder of such a model.'
  )
  return None


def _source(key: str, table: KeyTable, tensors: Tensors) -> str:
  """Returns the key that fills a leaf: its own, or a copy where only a copy was saved."""
  if key in tensors or key in tensors.lost:
    return key
  copies = (copy for copy, other in table.copies.items() if other == key and copy in tensors)
  return next(copies, key)


def _compare(
  table: KeyTable, leaves: Mapping[tuple, Any], tensors: Tensors, faults: list[str]
) -> None:
  """Notes every difference between what the model needs and what the files hold."""
  for key, (path, layout) in table.leaves.items():
    source = _source(key, table, tensors)
    if source in tensors:
      wanted, got = layout.torch_shape(leaves[path].shape), tensors.shape(source)
      if got != wanted:
        faults.append(
          f'{tensors.file(source)}: expected "{source}" of shape {wanted}; got {got}. Take the'
          f" {CONFIG} that belongs to these weights."
        )
      if tensors.dtype(source) not in _FLOATS:
        faults.append(
          f'{tensors.file(source)}: expected "{source}" as one of {", ".join(_FLOATS)}; got'
          f" {tensors.dtype(source)}. Take a checkpoint that is not quantised."
        )
    elif key not in tensors.lost:
      faults.append(
        f'expected "{key}" of the {CONFIG}\'s model; got no such tensor. Take a checkpoint of the'
        " whole model."
      )
  for key in tensors:
    other = table.copies.get(key)
    if other is not None:
      if other in tensors and not np.array_equal(tensors[key], tensors[other]):
        faults.append(
          f'{tensors.file(key)}: expected "{key}" to equal "{other}"; got other values. Take a'
          " checkpoint with one embedding matrix."
        )
    elif key not in table.leaves and key not in table.ignored:
      faults.append(
        f'{tensors.file(key)}: expected only keys of the {CONFIG}\'s model; got "{key}". Take the'
        f" {CONFIG} that belongs to these weights."
      )
