"""T5, UL2 and ByT5 for the loader: the config and the keys of their checkpoints."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from afspl_jax.models.architectures import Architecture
from afspl_jax.models.contracts import LanguageModel
from afspl_jax.models.huggingface.key_table import KeyTable, Layout, Leaf
from afspl_jax.models.t5.config import T5Config
from afspl_jax.models.t5.t5 import T5

# Old checkpoints have the same matrix under up to three keys.
_EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def read_t5_config(raw: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> T5Config:
  """Reads the config of a checkpoint; its tensors decide whether the head is tied.

  Args:
    raw: the parsed config.json.
    tensors: by Hugging Face key; a `lm_head.weight` that equals the embedding is tied to it.
  """
  separate = "lm_head.weight" in tensors
  embedding = next((tensors[key] for key in _EMBEDDINGS if key in tensors), None)
  if separate and embedding is not None:
    separate = not np.array_equal(tensors["lm_head.weight"], embedding)
  elif separate:
    separate = raw.get("tie_word_embeddings") is False
  return T5Config.from_hf(raw).for_checkpoint(raw, separate_head=separate)


def t5_key_table(config: T5Config) -> KeyTable:
  """Lists the keys of a `T5ForConditionalGeneration` checkpoint of this size and variant."""
  leaves = {"shared.weight": Leaf(("embedding",))}
  copies = dict.fromkeys(_EMBEDDINGS[1:], "shared.weight")
  if config.tied_head:
    copies["lm_head.weight"] = "shared.weight"
  else:
    leaves["lm_head.weight"] = Leaf(("head",), Layout.LINEAR)
  depths = {"encoder": config.encoder_layers, "decoder": config.decoder_layers}
  for side, depth in depths.items():
    for i in range(depth):
      leaves |= _layer_keys(side, i, config.gated)
    first = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    leaves[first] = Leaf((side, "position_bias"))
    leaves[f"{side}.final_layer_norm.weight"] = Leaf((side, "final_norm", "scale"))
  # T5 v1.0 checkpoints have a bias that cross-attention does not use.
  unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
  return KeyTable(leaves, copies, frozenset({unused}))


def _layer_keys(side: str, i: int, gated: bool) -> dict[str, Leaf]:
  leaves: dict[str, Leaf] = {}
  blocks = [("self_norm", "self_attention", "SelfAttention")]
  if side == "decoder":
    blocks.append(("cross_norm", "cross_attention", "EncDecAttention"))
  theirs, ours = f"{side}.block.{i}.layer", (side, "layers", i)
  for j, (norm, attention, name) in enumerate(blocks):
    leaves[f"{theirs}.{j}.layer_norm.weight"] = Leaf((*ours, norm, "scale"))
    for letter, linear in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "out")):
      path = (*ours, attention, linear, "kernel")
      leaves[f"{theirs}.{j}.{name}.{letter}.weight"] = Leaf(path, Layout.LINEAR)
  j = len(blocks)
  leaves[f"{theirs}.{j}.layer_norm.weight"] = Leaf((*ours, "mlp_norm", "scale"))
  linears = {"wi_0": "into", "wi_1": "gate"} if gated else {"wi": "into"}
  for name, linear in (linears | {"wo": "out"}).items():
    path = (*ours, "mlp", linear, "kernel")
    leaves[f"{theirs}.{j}.DenseReluDense.{name}.weight"] = Leaf(path, Layout.LINEAR)
  return leaves


ARCHITECTURE = Architecture(
  "t5",
  LanguageModel,
  T5,
  read_t5_config,
  t5_key_table,
  tokenizers=("T5Tokenizer", "ByT5Tokenizer"),
)
