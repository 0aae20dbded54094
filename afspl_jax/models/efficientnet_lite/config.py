"""Settings of EfficientNet-Lite, read from and written to a config.json."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from afspl_jax.errors import UserError
from afspl_jax.models.contracts import VisionSizes
from afspl_jax.models.huggingface.config_fields import read_fields, write_fields

MODEL_TYPE = "efficientnet_lite"
_NAMES = {
  "width_coefficient": "width_coefficient",
  "depth_coefficient": "depth_coefficient",
  "image_size": "image_size",
  "norm_epsilon": "batch_norm_eps",
}
STEM_WIDTH, HEAD_WIDTH = 32, 1280  # of every size: Lite does not scale stem and head
SHRINK = 32  # pixels of a side for each cell of the grid
_LARGEST = 16.0  # a coefficient; that of the largest published network is 1.8


class Block(NamedTuple):
  """One inverted residual block."""

  inputs: int  # channels
  outputs: int
  expand: int  # hidden channels for each input channel
  kernel: int  # side of the depthwise convolution
  stride: int

  @property
  def hidden(self) -> int:
    """Channels of the depthwise convolution."""
    return self.inputs * self.expand


# Repeats, kernel, stride, expansion, channels: EfficientNet-B0's (Tan and Le 2019, table 1).
_STAGES = (
  (1, 3, 1, 1, 16),
  (2, 3, 2, 6, 24),
  (2, 5, 2, 6, 40),
  (3, 3, 2, 6, 80),
  (3, 5, 1, 6, 112),
  (4, 5, 2, 6, 192),
  (1, 3, 1, 6, 320),
)


@dataclasses.dataclass(frozen=True)
class EfficientNetLiteConfig:
  """The network; the defaults are Lite0's."""

  width_coefficient: float = 1.0  # of channels
  depth_coefficient: float = 1.0  # of repeats
  image_size: int = 224  # pixels, height and width
  norm_epsilon: float = 1e-3  # of the batch norms

  def __post_init__(self):
    for name in ("width_coefficient", "depth_coefficient"):
      if not 0 < getattr(self, name) <= _LARGEST:
        raise UserError(
          f'config.json: "{name}" must be above 0 and at most {_LARGEST:g}; got'
          f" {getattr(self, name)}. Take that of the network, such as 1.0 for Lite0."
        )

  @property
  def blocks(self) -> tuple[Block, ...]:
    """The blocks in their order; only the first of a stage has its stride."""
    blocks, channels = [], STEM_WIDTH
    for stage, (repeats, kernel, stride, expand, width) in enumerate(_STAGES):
      outputs = _divisible(width * self.width_coefficient)
      if 0 < stage < len(_STAGES) - 1:  # Lite does not repeat the first and the last stage
        repeats = math.ceil(repeats * self.depth_coefficient)
      for i in range(repeats):
        blocks.append(Block(channels, outputs, expand, kernel, 1 if i else stride))
        channels = outputs
    return tuple(blocks)

  @property
  def sizes(self) -> VisionSizes:
    """The sizes, as the contract `VisionEncoder` gives them."""
    return VisionSizes(
      image_size=self.image_size,
      leading_tokens=0,
      patches=math.ceil(self.image_size / SHRINK) ** 2,
      token_width=self.blocks[-1].outputs,
      feature_width=HEAD_WIDTH,
      text_length=0,
    )

  @classmethod
  def from_hf(cls, raw: Mapping[str, Any]) -> "EfficientNetLiteConfig":
    """Reads a config.json of model_type "efficientnet_lite".

    Raises:
      UserError: a field has a value that is invalid; the message names it.
    """
    return cls(**read_fields(cls, _NAMES, raw, "config.json"))

  def to_hf(self) -> dict[str, Any]:
    """Renders the config.json."""
    return {"model_type": MODEL_TYPE, **write_fields(self, _NAMES)}


def _divisible(width: float) -> int:
  """Rounds to a multiple of 8, and never down by more than a tenth (as TensorFlow's reference)."""
  rounded = max(8, int(width + 4) // 8 * 8)
  return rounded + 8 if rounded < 0.9 * width else rounded
