"""EfficientNet-Lite for the loader: the keys of the PyTorch release, as safetensors.

The networks were not published in Hugging Face form. The names of tensors are those of the PyTorch
packages (`_blocks.0._depthwise_conv.weight`); the user writes config.json (docs/backbones.md).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from afspl_jax.models.architectures import Architecture
from afspl_jax.models.contracts import VisionEncoder
from afspl_jax.models.efficientnet_lite.config import MODEL_TYPE, EfficientNetLiteConfig
from afspl_jax.models.efficientnet_lite.efficientnet_lite import EfficientNetLite
from afspl_jax.models.huggingface.checkpoint_files import BackboneError, read_config_file
from afspl_jax.models.huggingface.image_settings import ImageDefaults
from afspl_jax.models.huggingface.key_table import KeyTable, Layout, Leaf
from afspl_jax.models.huggingface.preprocessing import ImageProcessor

_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "variance"}


def read_config(
  raw: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> EfficientNetLiteConfig:
  """Reads the config of a checkpoint; it does not depend on the tensors."""
  del tensors
  return EfficientNetLiteConfig.from_hf(raw)


def key_table(config: EfficientNetLiteConfig) -> KeyTable:
  """Lists the keys of a checkpoint of this size; its classifier is not used."""
  leaves, ignored = {}, {"_fc.weight", "_fc.bias"}

  def conv_norm(conv: str, norm: str, *ours: str | int) -> None:
    leaves[f"{conv}.weight"] = Leaf((*ours, "conv", "kernel"), Layout.CONV)
    for theirs, name in _NORM.items():
      leaves[f"{norm}.{theirs}"] = Leaf((*ours, name))
    ignored.add(f"{norm}.num_batches_tracked")

  conv_norm("_conv_stem", "_bn0", "stem")
  conv_norm("_conv_head", "_bn1", "head")
  for i, block in enumerate(config.blocks):
    theirs, ours = f"_blocks.{i}.", ("blocks", i)
    if block.expand > 1:
      conv_norm(theirs + "_expand_conv", theirs + "_bn0", *ours, "expand")
    conv_norm(theirs + "_depthwise_conv", theirs + "_bn1", *ours, "depthwise")
    conv_norm(theirs + "_project_conv", theirs + "_bn2", *ours, "project")
  return KeyTable(leaves, {}, frozenset(ignored))


def image_processor(folder: Path) -> ImageProcessor:
  """The image processor of a checkpoint; it needs no file of settings, only the image size."""
  problems = list[str]()
  raw = read_config_file(folder, problems)
  if raw is None:
    raise BackboneError(folder, problems)
  side = EfficientNetLiteConfig.from_hf(raw).image_size
  return ImageProcessor(
    folder,
    ImageDefaults(
      "EfficientNetLite",
      size=side,
      crop=side,
      mean=(127.0,) * 3,
      std=(128.0,) * 3,
      rescale=1.0,
      needs_file=False,
    ),
  )


ARCHITECTURE = Architecture(
  MODEL_TYPE, VisionEncoder, EfficientNetLite, read_config, key_table, image_processor
)
