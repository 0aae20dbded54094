"""EfficientNet-Lite: inverted residual blocks without squeeze-and-excitation.

Tan and Le 2019, with the changes of the Lite family: ReLU6 in place of swish, and a stem and a head
of one width. Computes what the PyTorch and TensorFlow releases of the pretrained networks compute:
TensorFlow's "same" padding, which puts an odd pixel at the end, and norms of running statistics.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from afspl_jax.models.contracts import VisionSizes
from afspl_jax.models.efficientnet_lite.config import (
  HEAD_WIDTH,
  STEM_WIDTH,
  Block,
  EfficientNetLiteConfig,
)


class ConvNorm(nnx.Module):
  """A convolution without bias, and a batch norm of running statistics.

  Args:
    inputs: channels.
    outputs: channels.
    kernel: side of the kernel.
    stride: of both axes.
    groups: 1, or `inputs` for a depthwise convolution.
    epsilon: of the norm.
    dtype: of the convolution; the norm is one product and one sum in float32.
    param_dtype: in which parameters are kept.
    rngs: stream `params`.
  """

  def __init__(
    self,
    inputs: int,
    outputs: int,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    *,
    epsilon: float,
    dtype: DTypeLike,
    param_dtype: DTypeLike,
    rngs: nnx.Rngs,
  ):
    self.epsilon, self.dtype = epsilon, dtype
    self.conv = nnx.Conv(
      inputs,
      outputs,
      (kernel, kernel),
      strides=(stride, stride),
      padding="SAME",
      feature_group_count=groups,
      use_bias=False,
      dtype=dtype,
      param_dtype=param_dtype,
      rngs=rngs,
    )
    self.scale = nnx.Param(jnp.ones(outputs, param_dtype))
    self.bias = nnx.Param(jnp.zeros(outputs, param_dtype))
    self.mean = nnx.Param(jnp.zeros(outputs, param_dtype))
    self.variance = nnx.Param(jnp.ones(outputs, param_dtype))

  def __call__(self, x: Float[Array, "b h x i"]) -> Float[Array, "b y z o"]:
    """Convolves and normalises."""
    scale, bias, mean, variance = (
      leaf[...].astype(jnp.float32) for leaf in (self.scale, self.bias, self.mean, self.variance)
    )
    factor = scale * jax.lax.rsqrt(variance + self.epsilon)
    return (self.conv(x) * factor + (bias - mean * factor)).astype(self.dtype)


class InvertedResidual(nnx.Module):
  """Expands, convolves each channel, and projects (Sandler et al. 2018, fig. 3)."""

  def __init__(self, block: Block, conv_norm: functools.partial):
    self.skip = block.stride == 1 and block.inputs == block.outputs
    if block.expand > 1:
      self.expand = conv_norm(block.inputs, block.hidden)
    self.depthwise = conv_norm(
      block.hidden, block.hidden, block.kernel, block.stride, groups=block.hidden
    )
    self.project = conv_norm(block.hidden, block.outputs)
    self.expands = block.expand > 1

  def __call__(self, x: Float[Array, "b h x i"]) -> Float[Array, "b y z o"]:
    """Transforms a grid."""
    hidden = jax.nn.relu6(self.expand(x)) if self.expands else x
    out = self.project(jax.nn.relu6(self.depthwise(hidden)))
    return x + out if self.skip else out


class EfficientNetLite(nnx.Module):
  """Images to a grid and a pooled feature (contract `VisionEncoder`); it encodes no texts.

  Args:
    config: sizes.
    dtype: of the computation.
    param_dtype: in which parameters are kept; they are cast at use.
    rngs: stream `params` draws the initial weights.
  """

  def __init__(
    self,
    config: EfficientNetLiteConfig,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    conv_norm = functools.partial(
      ConvNorm, epsilon=config.norm_epsilon, dtype=dtype, param_dtype=param_dtype, rngs=rngs
    )
    self.config, self.dtype = config, dtype
    self.stem = conv_norm(3, STEM_WIDTH, 3, 2)
    self.blocks = nnx.List(InvertedResidual(block, conv_norm) for block in config.blocks)
    self.head = conv_norm(config.blocks[-1].outputs, HEAD_WIDTH)

  @property
  def sizes(self) -> VisionSizes:
    """See `VisionEncoder`."""
    return self.config.sizes

  def encode_image(
    self, pixels: Float[Array, "b h x 3"]
  ) -> tuple[Float[Array, "b v w"], Float[Array, "b f"]]:
    """Encodes images.

    Args:
      pixels: (level - 127) / 128, at `config.image_size`.

    Returns:
      The grid after the last block, row by row, and the mean of the head's grid, both without the
      classifier.
    """
    x = jax.nn.relu6(self.stem(pixels.astype(self.dtype)))
    for block in self.blocks:
      x = block(x)
    head = jax.nn.relu6(self.head(x)).astype(jnp.float32)
    return x.reshape(len(x), -1, x.shape[-1]), head.mean(axis=(1, 2)).astype(self.dtype)

  def encode_text(self, ids: Int[Array, "b l"], mask: Bool[Array, "b l"]) -> Float[Array, "b f"]:
    """Is never called: there is no text tower."""
    raise NotImplementedError("EfficientNet-Lite has no text tower")
