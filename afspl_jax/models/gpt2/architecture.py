"""GPT-2 for the loader: the config and the keys of its checkpoints."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from afspl_jax.models.architectures import Architecture
from afspl_jax.models.contracts import LanguageModel
from afspl_jax.models.gpt2.config import Gpt2Config
from afspl_jax.models.gpt2.gpt2 import Gpt2
from afspl_jax.models.huggingface.key_table import KeyTable, Leaf

_PREFIX = "transformer."
_NORMS = {"ln_1": "attention_norm", "ln_2": "mlp_norm"}
_LINEARS = {
  "attn.c_attn": "query_key_value",
  "attn.c_proj": "out",
  "mlp.c_fc": "mlp_in",
  "mlp.c_proj": "mlp_out",
}


def read_gpt2_config(raw: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Gpt2Config:
  """Reads the config of a checkpoint; it does not depend on the tensors."""
  del tensors
  return Gpt2Config.from_hf(raw)


def gpt2_key_table(config: Gpt2Config) -> KeyTable:
  """Lists the keys of a `GPT2LMHeadModel` checkpoint, or a `GPT2Model` as OpenAI's are.

  Both have the same tensors; those of a `GPT2Model` have no "transformer." before their keys.
  """
  bare = {
    "wte.weight": Leaf(("embedding",)),
    "wpe.weight": Leaf(("position_embedding",)),
    "ln_f.weight": Leaf(("final_norm", "scale")),
    "ln_f.bias": Leaf(("final_norm", "bias")),
  }
  masks = []  # buffers in old checkpoints
  for i in range(config.layers):
    theirs, ours = f"h.{i}", ("layers", i)
    for name, norm in _NORMS.items():
      bare[f"{theirs}.{name}.weight"] = Leaf((*ours, norm, "scale"))
      bare[f"{theirs}.{name}.bias"] = Leaf((*ours, norm, "bias"))
    for name, linear in _LINEARS.items():
      # Not transposed: transformers' Conv1D has inputs first, as our kernels.
      bare[f"{theirs}.{name}.weight"] = Leaf((*ours, linear, "kernel"))
      bare[f"{theirs}.{name}.bias"] = Leaf((*ours, linear, "bias"))
    masks += [f"{theirs}.attn.bias", f"{theirs}.attn.masked_bias"]
  leaves = {_PREFIX + key: leaf for key, leaf in bare.items()}
  copies = {key: _PREFIX + key for key in bare} | {"lm_head.weight": _PREFIX + "wte.weight"}
  return KeyTable(leaves, copies, frozenset(masks + [_PREFIX + key for key in masks]))


ARCHITECTURE = Architecture("gpt2", LanguageModel, Gpt2, read_gpt2_config, gpt2_key_table)
