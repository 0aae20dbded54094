"""Settings of a T5, read from and written to a Hugging Face config.json."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from afspl_jax.errors import UserError
from afspl_jax.models.huggingface.config_fields import read_fields, write_fields
from afspl_jax.models.layers.activations import check_activation

_NAMES = {
  "vocab_size": "vocab_size",
  "width": "d_model",
  "head_width": "d_kv",
  "mlp_width": "d_ff",
  "encoder_layers": "num_layers",
  "decoder_layers": "num_decoder_layers",
  "heads": "num_heads",
  "buckets": "relative_attention_num_buckets",
  "max_distance": "relative_attention_max_distance",
  "norm_epsilon": "layer_norm_epsilon",
  "pad_id": "pad_token_id",
  "eos_id": "eos_token_id",
}


@dataclasses.dataclass(frozen=True)
class T5Config:
  """A T5 encoder and decoder; the defaults are transformers' (T5 v1.0, small)."""

  vocab_size: int = 32128
  width: int = 512  # of a token, `d` in the glossary
  head_width: int = 64  # heads * head_width need not be width
  mlp_width: int = 2048
  encoder_layers: int = 6
  decoder_layers: int = 6
  heads: int = 8
  buckets: int = 32  # of the relative position bias
  max_distance: int = 128  # positions; all that are further away share the last bucket
  activation: str = "relu"  # a key of ACTIVATIONS
  gated: bool = False  # T5 v1.1: the MLP's hidden layer is activation(a) * b
  tied_head: bool = True  # the output matrix is the embedding
  scaled_head: bool = True  # hidden states are scaled by width**-0.5 before the output matrix
  norm_epsilon: float = 1e-6
  pad_id: int = 0  # also starts the decoder
  eos_id: int = 1
  model_type: str = "t5"  # or "mt5", the same network

  def __post_init__(self):
    check_activation(self.activation, "T5 config activation (feed_forward_proj)")
    if self.buckets < 4 or self.buckets % 2 or self.max_distance <= self.buckets // 2:
      raise UserError(
        "T5 config: expected an even number of buckets (relative_attention_num_buckets) of at"
        " least 4, and max_distance (relative_attention_max_distance) above half of it; got"
        f" {self.buckets} and {self.max_distance}. Change one of them."
      )
    if not all(0 <= i < self.vocab_size for i in (self.pad_id, self.eos_id)):
      raise UserError(
        f"T5 config: expected pad_token_id and eos_token_id below vocab_size, {self.vocab_size};"
        f" got {self.pad_id} and {self.eos_id}. Take the tokenizer's."
      )

  @classmethod
  def from_hf(cls, raw: Mapping[str, Any]) -> "T5Config":
    """Reads a config.json of model_type "t5" or "mt5".

    Whether the head is tied is read from the file here. But transformers 5 writes
    `tie_word_embeddings: true` for every T5, so `for_checkpoint` decides it by the keys.

    Args:
      raw: the parsed file.

    Raises:
      UserError: a field has a value that is invalid or not supported; the message names it.
    """
    kind = raw.get("model_type") or "t5"
    if kind not in ("t5", "mt5"):
      raise UserError(
        f'config.json: "model_type" must be "t5" or "mt5"; got {kind!r}.'
        " Give the folder of a T5ForConditionalGeneration checkpoint."
      )
    raw = {name: value for name, value in raw.items() if value is not None}  # null: the default
    # transformers' T5Config: "gated-ACTIVATION" or "ACTIVATION", and gated-gelu means gelu_new.
    mlp = str(raw.get("feed_forward_proj", "relu"))
    gated = mlp.startswith("gated-")
    activation = "gelu_new" if mlp == "gated-gelu" else mlp.removeprefix("gated-")
    fields = read_fields(cls, _NAMES, raw, "config.json")
    pad = fields.get("pad_id", cls.pad_id)
    if (start := raw.get("decoder_start_token_id", pad)) != pad:
      raise UserError(
        f'config.json: "decoder_start_token_id" must be the pad token, {pad}; got {start!r:.60}.'
        " Use another checkpoint."
      )
    fields.setdefault("decoder_layers", fields.get("encoder_layers", cls.encoder_layers))
    tied = raw.get("tie_word_embeddings") is not False
    config = cls(activation=activation, gated=gated, model_type=kind, **fields)
    return config.for_checkpoint(raw, separate_head=not tied)

  def for_checkpoint(self, raw: Mapping[str, Any], separate_head: bool) -> "T5Config":
    """Sets how the head works, given the keys of the weights.

    Args:
      raw: the config.json that this config was read from.
      separate_head: whether the weights have a `lm_head.weight` that differs from `shared.weight`.

    Returns:
      This config, with `tied_head` by the weights. `scaled_head` is the file's
      `scale_decoder_outputs` (transformers 5) if it is given; else it is False with
      `tie_word_embeddings: false` or a separate head. An mT5 never scales.
    """
    scaled = False if self.model_type == "mt5" else raw.get("scale_decoder_outputs")
    if scaled is None:
      scaled = not separate_head and raw.get("tie_word_embeddings") is not False
    return dataclasses.replace(self, tied_head=not separate_head, scaled_head=bool(scaled))

  def to_hf(self) -> dict[str, Any]:
    """Renders the config.json that transformers' `T5ForConditionalGeneration` loads."""
    name = "gelu" if self.gated and self.activation == "gelu_new" else self.activation
    return {
      "architectures": [f"{'MT5' if self.model_type == 'mt5' else 'T5'}ForConditionalGeneration"],
      "model_type": self.model_type,
      "is_encoder_decoder": True,
      "decoder_start_token_id": self.pad_id,
      "feed_forward_proj": f"gated-{name}" if self.gated else name,
      "tie_word_embeddings": self.tied_head,
      "scale_decoder_outputs": self.scaled_head,
      **write_fields(self, _NAMES),
    }
