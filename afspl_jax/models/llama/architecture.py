"""Llama for the loader: the config and the keys of its checkpoints."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from afspl_jax.models.architectures import Architecture
from afspl_jax.models.contracts import LanguageModel
from afspl_jax.models.huggingface.key_table import KeyTable, Layout, Leaf
from afspl_jax.models.llama.config import LlamaConfig
from afspl_jax.models.llama.llama import Llama

_ATTENTION = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "out"}
_MLP = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}
_NORMS = {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"}


def read_llama_config(raw: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> LlamaConfig:
  """Reads the config of a checkpoint; it does not depend on the tensors."""
  del tensors
  return LlamaConfig.from_hf(raw)


def llama_key_table(config: LlamaConfig) -> KeyTable:
  """Lists the keys of a `LlamaForCausalLM` checkpoint of this size and variant."""
  leaves = {
    "model.embed_tokens.weight": Leaf(("embedding",)),
    "model.norm.weight": Leaf(("final_norm", "scale")),
  }
  copies, ignored = {}, set()
  if config.tied_head:
    copies["lm_head.weight"] = "model.embed_tokens.weight"
  else:
    leaves["lm_head.weight"] = Leaf(("head",), Layout.LINEAR)
  for i in range(config.layers):
    theirs, ours = f"model.layers.{i}", ("layers", i)
    for name, norm in _NORMS.items():
      leaves[f"{theirs}.{name}.weight"] = Leaf((*ours, norm, "scale"))
    for part, names, bias in (
      ("self_attn", _ATTENTION, config.attention_bias),
      ("mlp", _MLP, config.mlp_bias),
    ):
      for name, linear in names.items():
        leaves[f"{theirs}.{part}.{name}.weight"] = Leaf((*ours, linear, "kernel"), Layout.LINEAR)
        if bias:
          leaves[f"{theirs}.{part}.{name}.bias"] = Leaf((*ours, linear, "bias"))
    ignored.add(f"{theirs}.self_attn.rotary_emb.inv_freq")  # a constant, in old checkpoints
  return KeyTable(leaves, copies, frozenset(ignored))


ARCHITECTURE = Architecture("llama", LanguageModel, Llama, read_llama_config, llama_key_table)
