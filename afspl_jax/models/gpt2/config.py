"""Settings of a GPT-2, read from and written to a Hugging Face config.json."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from afspl_jax.errors import UserError
from afspl_jax.models.huggingface.config_fields import check_eos, read_fields, write_fields
from afspl_jax.models.layers.activations import check_activation

_NAMES = {
  "vocab_size": "vocab_size",
  "width": "n_embd",
  "mlp_width": "n_inner",
  "layers": "n_layer",
  "heads": "n_head",
  "activation": "activation_function",
  "positions": "n_positions",
  "norm_epsilon": "layer_norm_epsilon",
  "eos_id": "eos_token_id",
}
# Values that change what the model computes, of which only the usual one is supported.
_USUAL = {
  "scale_attn_weights": True,
  "scale_attn_by_inverse_layer_idx": False,
  "add_cross_attention": False,
  "tie_word_embeddings": True,
}


@dataclasses.dataclass(frozen=True)
class Gpt2Config:
  """A GPT-2; the defaults are transformers' (the small one)."""

  vocab_size: int = 50257
  width: int = 768  # of a token, `d` in the glossary
  mlp_width: int = 3072
  layers: int = 12
  heads: int = 12
  activation: str = "gelu_new"  # a key of ACTIVATIONS
  positions: int = 1024  # the most of prefix and text together
  norm_epsilon: float = 1e-5
  eos_id: int = 50256

  def __post_init__(self):
    check_activation(self.activation, "GPT-2 config activation (activation_function)")
    if self.width % self.heads:
      raise UserError(
        f"GPT-2 config: expected n_embd that n_head divides; got {self.width} and {self.heads}."
        " Change one of them."
      )
    check_eos(self.eos_id, self.vocab_size, "GPT-2 config")

  @classmethod
  def from_hf(cls, raw: Mapping[str, Any]) -> "Gpt2Config":
    """Reads a config.json of model_type "gpt2".

    Args:
      raw: the parsed file.

    Raises:
      UserError: a field has a value that is invalid or not supported; the message names it.
    """
    for name, usual in _USUAL.items():
      if (value := raw.get(name, usual)) not in (usual, None):
        raise UserError(
          f'config.json: "{name}" must be {str(usual).lower()}; got {value!r:.60}. Use another'
          " checkpoint."
        )
    fields = read_fields(cls, _NAMES, raw, "config.json")
    fields.setdefault("mlp_width", 4 * fields.get("width", cls.width))
    return cls(**fields)

  def to_hf(self) -> dict[str, Any]:
    """Renders the config.json that transformers' `GPT2LMHeadModel` loads."""
    return {
      "architectures": ["GPT2LMHeadModel"],
      "model_type": "gpt2",
      **_USUAL,
      **write_fields(self, _NAMES),
    }
