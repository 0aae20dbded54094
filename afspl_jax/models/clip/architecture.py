"""CLIP for the loader: the config and the keys of its checkpoints."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from afspl_jax.models.architectures import Architecture
from afspl_jax.models.clip.clip import Clip
from afspl_jax.models.clip.config import ClipConfig
from afspl_jax.models.contracts import VisionEncoder
from afspl_jax.models.huggingface.key_table import KeyTable, Layout, Leaf
from afspl_jax.models.huggingface.preprocessing import ImageProcessor


def read_clip_config(raw: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> ClipConfig:
  """Reads the config of a checkpoint; it does not depend on the tensors."""
  del tensors
  return ClipConfig.from_hf(raw)


def clip_key_table(config: ClipConfig) -> KeyTable:
  """Lists the keys of a `CLIPModel` checkpoint of this size."""
  leaves = {
    "logit_scale": Leaf(("logit_scale",)),
    "visual_projection.weight": Leaf(("image_projection", "kernel"), Layout.LINEAR),
    "text_projection.weight": Leaf(("text_projection", "kernel"), Layout.LINEAR),
  }

  def norm(theirs: str, *ours: str | int) -> None:
    leaves[f"{theirs}.weight"] = Leaf((*ours, "scale"))
    leaves[f"{theirs}.bias"] = Leaf((*ours, "bias"))

  def linear(theirs: str, *ours: str | int) -> None:
    leaves[f"{theirs}.weight"] = Leaf((*ours, "kernel"), Layout.LINEAR)
    leaves[f"{theirs}.bias"] = Leaf((*ours, "bias"))

  vision, text = "vision_model.embeddings.", "text_model.embeddings."
  leaves[vision + "class_embedding"] = Leaf(("vision", "class_embedding"))
  leaves[vision + "patch_embedding.weight"] = Leaf(
    ("vision", "patch_embedding", "kernel"), Layout.CONV
  )
  leaves[vision + "position_embedding.weight"] = Leaf(("vision", "position_embedding"))
  leaves[text + "token_embedding.weight"] = Leaf(("text", "token_embedding"))
  leaves[text + "position_embedding.weight"] = Leaf(("text", "position_embedding"))
  norm("vision_model.pre_layrnorm", "vision", "pre_norm")  # so spelt in every checkpoint
  norm("vision_model.post_layernorm", "vision", "post_norm")
  norm("text_model.final_layer_norm", "text", "final_norm")
  for tower, layers in (("vision", config.vision.layers), ("text", config.text.layers)):
    for i in range(layers):
      theirs, ours = f"{tower}_model.encoder.layers.{i}", (tower, "layers", i)
      norm(f"{theirs}.layer_norm1", *ours, "norm1")
      norm(f"{theirs}.layer_norm2", *ours, "norm2")
      linear(f"{theirs}.self_attn.q_proj", *ours, "query")
      linear(f"{theirs}.self_attn.k_proj", *ours, "key")
      linear(f"{theirs}.self_attn.v_proj", *ours, "value")
      linear(f"{theirs}.self_attn.out_proj", *ours, "out")
      linear(f"{theirs}.mlp.fc1", *ours, "mlp_in")
      linear(f"{theirs}.mlp.fc2", *ours, "mlp_out")
  ignored = frozenset({vision + "position_ids", text + "position_ids"})
  return KeyTable(leaves, {}, ignored)


ARCHITECTURE = Architecture(
  "clip",
  VisionEncoder,
  Clip,
  read_clip_config,
  clip_key_table,
  ImageProcessor,
  tokenizers=("CLIPTokenizer",),
)
