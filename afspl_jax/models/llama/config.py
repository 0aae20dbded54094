"""Settings of a Llama, read from and written to a Hugging Face config.json."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from afspl_jax.errors import UserError
from afspl_jax.models.huggingface.config_fields import check_eos, read_fields, write_fields
from afspl_jax.models.layers.activations import check_activation
from afspl_jax.models.layers.rotary import Stretch

_NAMES = {
  "vocab_size": "vocab_size",
  "width": "hidden_size",
  "mlp_width": "intermediate_size",
  "layers": "num_hidden_layers",
  "heads": "num_attention_heads",
  "groups": "num_key_value_heads",
  "head_width": "head_dim",
  "activation": "hidden_act",
  "positions": "max_position_embeddings",
  "norm_epsilon": "rms_norm_eps",
  "attention_bias": "attention_bias",
  "mlp_bias": "mlp_bias",
  "tied_head": "tie_word_embeddings",
  "eos_id": "eos_token_id",
}
_STRETCH = {
  "factor": "factor",
  "low": "low_freq_factor",
  "high": "high_freq_factor",
  "positions": "original_max_position_embeddings",
}


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
  """A decoder in the form of Llama; the defaults are transformers'."""

  vocab_size: int = 32000
  width: int = 4096  # of a token, `d` in the glossary
  mlp_width: int = 11008
  layers: int = 32
  heads: int = 32
  groups: int = 32  # of heads that share keys and values
  head_width: int = 128
  activation: str = "silu"  # a key of ACTIVATIONS
  positions: int = 2048  # the most of prefix and text together
  rope_base: float = 10000.0
  stretch: Stretch | None = None  # of the rotations
  norm_epsilon: float = 1e-6
  attention_bias: bool = False
  mlp_bias: bool = False
  tied_head: bool = False  # the output matrix is the embedding
  eos_id: int = 2

  def __post_init__(self):
    check_activation(self.activation, "Llama config activation (hidden_act)")
    if self.heads % self.groups or self.head_width % 2:
      raise UserError(
        "Llama config: expected num_attention_heads that num_key_value_heads divides, and an even"
        f" head_dim; got {self.heads}, {self.groups} and {self.head_width}. Change one of them."
      )
    check_eos(self.eos_id, self.vocab_size, "Llama config")

  @classmethod
  def from_hf(cls, raw: Mapping[str, Any]) -> "LlamaConfig":
    """Reads a config.json of model_type "llama".

    Args:
      raw: the parsed file.

    Raises:
      UserError: a field has a value that is invalid or not supported; the message names it.
    """
    fields = read_fields(cls, _NAMES, raw, "config.json")
    heads = fields.get("heads", cls.heads)
    fields.setdefault("groups", heads)
    fields.setdefault("head_width", fields.get("width", cls.width) // heads)
    return cls(**fields, **_read_rotations(raw))

  def to_hf(self) -> dict[str, Any]:
    """Renders the config.json that transformers' `LlamaForCausalLM` loads."""
    scaling = None
    if self.stretch is not None:
      names = {theirs: getattr(self.stretch, ours) for ours, theirs in _STRETCH.items()}
      scaling = {"rope_type": "llama3"} | names
    return {
      "architectures": ["LlamaForCausalLM"],
      "model_type": "llama",
      "rope_theta": self.rope_base,
      "rope_scaling": scaling,
      **write_fields(self, _NAMES),
    }


def _read_rotations(raw: Mapping[str, Any]) -> dict[str, Any]:
  """Reads `rope_parameters` of transformers 5, or `rope_theta` and `rope_scaling` of before."""
  found = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
  if not isinstance(found, Mapping):
    raise UserError(f'config.json: "rope_parameters" must be an object; got {found!r:.60}.')
  kind = found.get("rope_type", found.get("type", "default"))
  if kind not in ("default", "llama3"):
    raise UserError(
      f'config.json: "rope_type" must be "default" or "llama3"; got {kind!r:.60}. Use another'
      " checkpoint."
    )
  where = "config.json rope_parameters"
  base = {"rope_theta": found.get("rope_theta", raw.get("rope_theta"))}
  rotations: dict[str, Any] = read_fields(LlamaConfig, {"rope_base": "rope_theta"}, base, where)
  if kind == "llama3":
    stretch = read_fields(Stretch, _STRETCH, found, where)
    if missing := [theirs for ours, theirs in _STRETCH.items() if ours not in stretch]:
      raise UserError(f"{where}: expected {', '.join(missing)}; got none. Take the published file.")
    rotations["stretch"] = Stretch(**stretch)
  return rotations
