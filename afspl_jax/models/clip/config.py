"""Settings of the CLIP towers, read from and written to a Hugging Face config.json."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from afspl_jax.errors import UserError
from afspl_jax.models.contracts import VisionSizes
from afspl_jax.models.huggingface.config_fields import read_fields, write_fields
from afspl_jax.models.layers.activations import check_activation

_TOWER_NAMES = {
  "width": "hidden_size",
  "layers": "num_hidden_layers",
  "heads": "num_attention_heads",
  "mlp_width": "intermediate_size",
  "activation": "hidden_act",
  "norm_epsilon": "layer_norm_eps",
}
_VISION_NAMES = _TOWER_NAMES | {"image_size": "image_size", "patch_size": "patch_size"}
_TEXT_NAMES = _TOWER_NAMES | {
  "vocab_size": "vocab_size",
  "max_length": "max_position_embeddings",
  "bos_id": "bos_token_id",
  "eos_id": "eos_token_id",
  "pad_id": "pad_token_id",
}
# Configs of OpenAI's checkpoints have eos_token_id 2, which no text contains; for it, transformers'
# CLIPTextModel pools at the highest id, which is the real end of text.
LEGACY_EOS = 2
_PARTS = ("vision_config", "text_config")


def _check_tower(tower: "ClipVisionConfig | ClipTextConfig", where: str) -> None:
  check_activation(tower.activation, f"{where} activation (hidden_act)")
  if tower.width % tower.heads:
    raise UserError(
      f"{where}: expected a width (hidden_size) that is a multiple of the heads"
      f" (num_attention_heads); got {tower.width} and {tower.heads}. Change one of them."
    )


@dataclasses.dataclass(frozen=True)
class ClipVisionConfig:
  """The vision tower; the defaults are transformers' (ViT-B/32)."""

  width: int = 768  # of a token
  layers: int = 12
  heads: int = 12
  mlp_width: int = 3072
  image_size: int = 224  # pixels, height and width
  patch_size: int = 32  # pixels, height and width
  activation: str = "quick_gelu"  # a key of ACTIVATIONS
  norm_epsilon: float = 1e-5

  def __post_init__(self):
    _check_tower(self, "CLIP vision config")
    if self.patch_size > self.image_size:
      raise UserError(
        "CLIP vision config: expected a patch_size no larger than image_size; got"
        f" {self.patch_size} and {self.image_size}. Change one of them."
      )

  @property
  def num_patches(self) -> int:
    """Patches of an image; pixels after the last complete patch are not used."""
    return (self.image_size // self.patch_size) ** 2

  @classmethod
  def from_hf(cls, raw: Mapping[str, Any]) -> "ClipVisionConfig":
    """Reads the "vision_config" of a config.json."""
    where = "config.json vision_config"
    raw = dict(raw)
    for name in ("image_size", "patch_size"):
      sides = raw.get(name)
      if isinstance(sides, list) and len(sides) == 2 and sides[0] == sides[1]:
        raw[name] = sides[0]
      elif isinstance(sides, list):
        raise UserError(
          f'{where}: "{name}" must be a square; got {sides!r:.60}. Use another checkpoint.'
        )
    if raw.get("num_channels") not in (None, 3):
      raise UserError(
        f'{where}: "num_channels" must be 3; got {raw["num_channels"]!r:.60}. Take another'
        " checkpoint."
      )
    return cls(**read_fields(cls, _VISION_NAMES, raw, where))


@dataclasses.dataclass(frozen=True)
class ClipTextConfig:
  """The text tower; the defaults are transformers'."""

  width: int = 512  # of a token
  layers: int = 12
  heads: int = 8
  mlp_width: int = 2048
  vocab_size: int = 49408
  max_length: int = 77  # tokens, with both ends
  activation: str = "quick_gelu"  # a key of ACTIVATIONS
  norm_epsilon: float = 1e-5
  bos_id: int | None = 49406
  eos_id: int = 49407  # where a text is pooled; see LEGACY_EOS
  pad_id: int | None = 1  # transformers' default; its tokenizers pad with eos_id nevertheless

  def __post_init__(self):
    _check_tower(self, "CLIP text config")
    if not 0 <= self.eos_id < self.vocab_size:
      raise UserError(
        "CLIP text config: expected an eos_token_id (49407 if it is absent) below vocab_size,"
        f" {self.vocab_size}, because texts are pooled there; got {self.eos_id}. Set it to the"
        " tokenizer's end token."
      )

  @classmethod
  def from_hf(cls, raw: Mapping[str, Any]) -> "ClipTextConfig":
    """Reads the "text_config" of a config.json."""
    return cls(**read_fields(cls, _TEXT_NAMES, raw, "config.json text_config"))


@dataclasses.dataclass(frozen=True)
class ClipConfig:
  """Both towers and the joint space."""

  vision: ClipVisionConfig = ClipVisionConfig()
  text: ClipTextConfig = ClipTextConfig()
  joint_width: int = 512  # of the projected features of images and texts
  initial_logit_scale: float = 2.6592  # ln(1 / 0.07)

  @property
  def sizes(self) -> VisionSizes:
    """The sizes of a CLIP with this config, as the contract `VisionEncoder` gives them."""
    return VisionSizes(
      image_size=self.vision.image_size,
      leading_tokens=1,  # CLS
      patches=self.vision.num_patches,
      token_width=self.vision.width,
      feature_width=self.joint_width,
      text_length=self.text.max_length,
      text_vocabulary=self.text.vocab_size,
      text_eos_id=None if self.text.eos_id == LEGACY_EOS else self.text.eos_id,
    )

  @classmethod
  def from_hf(cls, raw: Mapping[str, Any]) -> "ClipConfig":
    """Reads a config.json of model_type "clip".

    Args:
      raw: the parsed file.

    Raises:
      UserError: a field has a value that is invalid or not supported; the message names it.
    """
    if raw.get("model_type", "clip") != "clip":
      raise UserError(
        f'config.json: "model_type" must be "clip"; got {raw["model_type"]!r}.'
        " Give the folder of a CLIPModel checkpoint."
      )
    # As transformers' CLIPConfig: if an old file also has the *_dict form, that one is used.
    vision, text = (raw.get(f"{part}_dict") or raw.get(part) or {} for part in _PARTS)
    for part, found in zip(_PARTS, (vision, text), strict=True):
      if not isinstance(found, dict):
        raise UserError(
          f'config.json: "{part}" must be an object; got {found!r:.60}. Use another checkpoint.'
        )
    names = {"joint_width": "projection_dim", "initial_logit_scale": "logit_scale_init_value"}
    return cls(
      vision=ClipVisionConfig.from_hf(vision),
      text=ClipTextConfig.from_hf(text),
      **read_fields(cls, names, raw, "config.json"),
    )

  def to_hf(self) -> dict[str, Any]:
    """Renders the config.json that transformers' `CLIPModel` loads."""
    return {
      "architectures": ["CLIPModel"],
      "model_type": "clip",
      "projection_dim": self.joint_width,
      "logit_scale_init_value": self.initial_logit_scale,
      "vision_config": {
        "model_type": "clip_vision_model",
        "num_channels": 3,
        "projection_dim": self.joint_width,
        **write_fields(self.vision, _VISION_NAMES),
      },
      "text_config": {
        "model_type": "clip_text_model",
        "projection_dim": self.joint_width,
        **write_fields(self.text, _TEXT_NAMES),
      },
    }
