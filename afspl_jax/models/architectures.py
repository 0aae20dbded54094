"""The architectures of backbones: each is one folder next to this file.

A folder is found by its module `architecture`, which defines `ARCHITECTURE`. To add one, nothing
else is edited.
"""

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from afspl_jax import models
from afspl_jax.models.contracts import ImagePreprocessor, LanguageModel, VisionEncoder
from afspl_jax.models.huggingface.key_table import KeyTable


class Architecture(NamedTuple):
  """How checkpoints of one architecture become a module.

  Attributes:
    model_type: what config.json of such a checkpoint has under this name.
    contract: what the module implements.
    model: the NNX class, `model(config, dtype=, param_dtype=, rngs=)`. It keeps `config`, whose
      `to_hf()` renders config.json.
    read_config: from a parsed config.json and the tensors beside it to the model's config.
    key_table: from the model's config to the keys of its checkpoints.
    image_processor: from a checkpoint's folder to its image processor; None: it takes no images.
    tokenizers: the classes of transformers that its tokenizer files may name, the usual one first;
      none: tokenizer.json is read as it is.
  """

  model_type: str
  contract: type[VisionEncoder] | type[LanguageModel]
  model: type
  read_config: Callable[[Mapping[str, Any], Mapping[str, np.ndarray]], Any]
  key_table: Callable[[Any], KeyTable]
  image_processor: Callable[[Path], ImagePreprocessor] | None = None
  tokenizers: tuple[str, ...] = ()


@functools.cache
def architectures() -> dict[str, Architecture]:
  """All architectures by `model_type`, sorted."""
  all_found = []
  for package in pkgutil.iter_modules(models.__path__):
    name = f"{models.__name__}.{package.name}"
    if package.ispkg and importlib.util.find_spec(f"{name}.architecture"):
      all_found.append(importlib.import_module(f"{name}.architecture").ARCHITECTURE)
  return {found.model_type: found for found in sorted(all_found, key=lambda x: x.model_type)}
