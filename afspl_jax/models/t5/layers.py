"""The layers of T5 (Raffel et al. 2020): attention, MLP and the stack of either side."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from afspl_jax.models.layers.activations import ACTIVATIONS
from afspl_jax.models.layers.attention import attend
from afspl_jax.models.layers.products import dense
from afspl_jax.models.t5.config import T5Config
from afspl_jax.models.t5.relative_position import relative_buckets

_linear = functools.partial(dense, use_bias=False)


def _norm(config: T5Config, **kwargs: Any) -> nnx.RMSNorm:
  return nnx.RMSNorm(config.width, epsilon=config.norm_epsilon, **kwargs)


class T5Attention(nnx.Module):
  """Multi-head attention without scaling of the scores (transformers `T5Attention`).

  The missing 1/sqrt(head_width) is in the initial weights of the queries instead.
  """

  def __init__(self, config: T5Config, **kwargs: Any):
    width, inner = config.width, config.heads * config.head_width
    self.heads = config.heads
    self.query = _linear(width, inner, (width * config.head_width) ** -0.5, **kwargs)
    self.key = _linear(width, inner, width**-0.5, **kwargs)
    self.value = _linear(width, inner, width**-0.5, **kwargs)
    self.out = _linear(inner, width, inner**-0.5, **kwargs)

  def keys_values(
    self, x: Float[Array, "b m d"]
  ) -> tuple[Float[Array, "b m h k"], Float[Array, "b m h k"]]:
    """Projects the attended positions to keys and values."""
    shape = (*x.shape[:2], self.heads, -1)
    return self.key(x).reshape(shape), self.value(x).reshape(shape)

  def __call__(
    self,
    x: Float[Array, "b q d"],
    keys: Float[Array, "b m h k"],
    values: Float[Array, "b m h k"],
    bias: Float[Array, "#b #h #q m"],
  ) -> Float[Array, "b q d"]:
    """Attends from x to the given keys and values."""
    query = self.query(x).reshape(*x.shape[:2], self.heads, -1)
    mixed = attend(query, keys, values, bias)
    return self.out(mixed.reshape(*x.shape[:2], -1))


class T5Mlp(nnx.Module):
  """The MLP: act(x W) in v1.0, act(x W) * (x V) in v1.1 (Shazeer 2020), then projected back."""

  def __init__(self, config: T5Config, **kwargs: Any):
    self.activation = ACTIVATIONS[config.activation]
    self.into = _linear(config.width, config.mlp_width, config.width**-0.5, **kwargs)
    self.gated = config.gated
    if config.gated:
      self.gate = _linear(config.width, config.mlp_width, config.width**-0.5, **kwargs)
    self.out = _linear(config.mlp_width, config.width, config.mlp_width**-0.5, **kwargs)

  def __call__(self, x: Float[Array, "b q d"]) -> Float[Array, "b q d"]:
    """Transforms each position."""
    h = self.activation(self.into(x))
    return self.out(h * self.gate(x) if self.gated else h)


class T5Layer(nnx.Module):
  """Self-attention, in the decoder cross-attention, and MLP, each pre-norm and residual."""

  def __init__(self, config: T5Config, cross: bool, **kwargs: Any):
    self.self_norm = _norm(config, **kwargs)
    self.self_attention = T5Attention(config, **kwargs)
    if cross:
      self.cross_norm = _norm(config, **kwargs)
      self.cross_attention = T5Attention(config, **kwargs)
    self.mlp_norm = _norm(config, **kwargs)
    self.mlp = T5Mlp(config, **kwargs)

  def attend_self(
    self, x: Float[Array, "b q d"], bias: Float[Array, "#b h q q"]
  ) -> Float[Array, "b q d"]:
    """Attends from every position of x to all positions that `bias` does not hide."""
    h = self.self_norm(x)
    return x + self.self_attention(h, *self.self_attention.keys_values(h), bias)

  def attend_cross(
    self,
    x: Float[Array, "b q d"],
    keys: Float[Array, "b l h k"],
    values: Float[Array, "b l h k"],
    bias: Float[Array, "b 1 1 l"],
  ) -> Float[Array, "b q d"]:
    """Attends from the decoder's positions to the encoder's output."""
    return x + self.cross_attention(self.cross_norm(x), keys, values, bias)

  def transform(self, x: Float[Array, "b q d"]) -> Float[Array, "b q d"]:
    """Applies the MLP."""
    return x + self.mlp(self.mlp_norm(x))


# Jitted separately, so that the equal layers of a stack are traced once.
@jax.jit
def encoder_layer(
  layer: T5Layer, x: Float[Array, "b q d"], bias: Float[Array, "b h q q"]
) -> Float[Array, "b q d"]:
  """One layer of the encoder."""
  return layer.transform(layer.attend_self(x, bias))


@jax.jit
def decoder_layer(
  layer: T5Layer,
  x: Float[Array, "b q d"],
  bias: Float[Array, "1 h q q"],
  encoded: Float[Array, "b l d"],
  cross_bias: Float[Array, "b 1 1 l"],
) -> Float[Array, "b q d"]:
  """One layer of the decoder, over all steps at once."""
  x = layer.attend_self(x, bias)
  x = layer.attend_cross(x, *layer.cross_attention.keys_values(encoded), cross_bias)
  return layer.transform(x)


class T5Stack(nnx.Module):
  """The layers of one side, its position bias and its final norm (transformers `T5Stack`)."""

  def __init__(
    self,
    config: T5Config,
    decoder: bool,
    *,
    dtype: DTypeLike,
    param_dtype: DTypeLike,
    rngs: nnx.Rngs,
  ):
    kwargs = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
    self.config = config
    self.decoder = decoder
    init = nnx.initializers.normal(config.width**-0.5)
    self.position_bias = nnx.Param(init(rngs.params(), (config.buckets, config.heads), param_dtype))
    depth = config.decoder_layers if decoder else config.encoder_layers
    self.layers = nnx.List(T5Layer(config, decoder, **kwargs) for _ in range(depth))
    self.final_norm = _norm(config, **kwargs)

  def bias(self, length: int) -> Float[Array, "1 h q q"]:
    """Looks up the position bias of the scores; once a forward pass, as all layers share it.

    Args:
      length: number of positions.

    Returns:
      float32, for each head, query and key. The decoder's does not hide later positions.
    """
    buckets = relative_buckets(
      length,
      length,
      num_buckets=self.config.buckets,
      max_distance=self.config.max_distance,
      bidirectional=not self.decoder,
    )
    bias = self.position_bias[...].astype(jnp.float32)[buckets]
    return bias.transpose(2, 0, 1)[None]
