"""CLIP: vision tower, text tower and their projections (Radford et al. 2021).

Computes what transformers' `CLIPModel` computes.
"""

import functools

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from afspl_jax.errors import UserError
from afspl_jax.models.clip.config import LEGACY_EOS, ClipConfig, ClipTextConfig, ClipVisionConfig
from afspl_jax.models.contracts import VisionSizes
from afspl_jax.models.layers.activations import ACTIVATIONS
from afspl_jax.models.layers.attention import HIDDEN, attend
from afspl_jax.models.layers.layer_norm import layer_norm
from afspl_jax.models.layers.products import dense


def _param(rngs: nnx.Rngs, shape: tuple[int, ...], std: float, dtype: DTypeLike) -> nnx.Param:
  return nnx.Param(std * nnx.initializers.normal(1.0)(rngs.params(), shape, dtype))


class ClipLayer(nnx.Module):
  """A pre-norm transformer layer (transformers `CLIPEncoderLayer`)."""

  def __init__(
    self,
    config: ClipVisionConfig | ClipTextConfig,
    *,
    dtype: DTypeLike,
    param_dtype: DTypeLike,
    rngs: nnx.Rngs,
  ):
    linear = functools.partial(dense, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
    width = config.width
    # As openai/CLIP `initialize_parameters`; transformers swaps the std of q, k, v and that of out.
    into, out = width**-0.5, width**-0.5 * (2 * config.layers) ** -0.5
    self.heads = config.heads
    self.activation = ACTIVATIONS[config.activation]
    self.norm1 = layer_norm(config, dtype, param_dtype, rngs)
    self.query = linear(width, width, into)
    self.key = linear(width, width, into)
    self.value = linear(width, width, into)
    self.out = linear(width, width, out)
    self.norm2 = layer_norm(config, dtype, param_dtype, rngs)
    self.mlp_in = linear(width, config.mlp_width, (2 * width) ** -0.5)
    self.mlp_out = linear(config.mlp_width, width, out)

  def __call__(
    self, x: Float[Array, "b l w"], bias: Float[Array, "#b 1 #l l"]
  ) -> Float[Array, "b l w"]:
    """Attends, then transforms each position; `bias` is added to the attention scores."""
    h = self.norm1(x)
    shape = (*x.shape[:2], self.heads, -1)
    query, key, value = (f(h).reshape(shape) for f in (self.query, self.key, self.value))
    mixed = attend(query, key, value, bias, scale=query.shape[-1] ** -0.5)
    x = x + self.out(mixed.reshape(x.shape))
    return x + self.mlp_out(self.activation(self.mlp_in(self.norm2(x))))


class ClipVision(nnx.Module):
  """The vision transformer (transformers `CLIPVisionModel`)."""

  def __init__(
    self, config: ClipVisionConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs
  ):
    width, std = config.width, config.width**-0.5
    self.config = config
    self.dtype = dtype
    self.class_embedding = _param(rngs, (width,), std, param_dtype)
    self.patch_embedding = nnx.Conv(
      3,
      width,
      (config.patch_size, config.patch_size),
      strides=(config.patch_size, config.patch_size),
      padding="VALID",
      use_bias=False,
      dtype=dtype,
      param_dtype=param_dtype,
      rngs=rngs,
    )
    self.position_embedding = _param(rngs, (1 + config.num_patches, width), std, param_dtype)
    self.pre_norm = layer_norm(config, dtype, param_dtype, rngs)
    self.layers = nnx.List(
      ClipLayer(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
      for _ in range(config.layers)
    )
    self.post_norm = layer_norm(config, dtype, param_dtype, rngs)

  def __call__(
    self, pixels: Float[Array, "b h x 3"], keep: Int[Array, "b k"] | None = None
  ) -> tuple[Float[Array, "b v w"], Float[Array, "b w"]]:
    """Returns the last layer's tokens, CLS first, and the normed CLS token."""
    size = self.config.image_size
    if pixels.shape[1:3] != (size, size):
      raise UserError(
        f"CLIP: expected images of {size} x {size} pixels; got {pixels.shape[1]} x"
        f" {pixels.shape[2]}. Prepare them with the image processor of the same checkpoint."
      )
    patches = self.patch_embedding(pixels)
    patches = patches.reshape(patches.shape[0], -1, patches.shape[-1])
    positions = self.position_embedding[...].astype(self.dtype)
    patches = patches + positions[1:]
    if keep is not None:
      patches = jnp.take_along_axis(patches, keep[:, :, None], axis=1)
    first = self.class_embedding[...].astype(self.dtype) + positions[0]
    first = jnp.broadcast_to(first, (patches.shape[0], 1, patches.shape[-1]))
    x = self.pre_norm(jnp.concatenate([first, patches], axis=1))
    bias = jnp.zeros((1, 1, 1, x.shape[1]))
    for layer in self.layers:
      x = layer(x, bias)
    return x, self.post_norm(x[:, 0])


class ClipText(nnx.Module):
  """The causal text transformer (transformers `CLIPTextModel`)."""

  def __init__(
    self, config: ClipTextConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs
  ):
    self.config = config
    self.dtype = dtype
    self.token_embedding = _param(rngs, (config.vocab_size, config.width), 0.02, param_dtype)
    self.position_embedding = _param(rngs, (config.max_length, config.width), 0.01, param_dtype)
    self.layers = nnx.List(
      ClipLayer(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
      for _ in range(config.layers)
    )
    self.final_norm = layer_norm(config, dtype, param_dtype, rngs)

  def __call__(
    self, ids: Int[Array, "b l"], mask: Bool[Array, "b l"] | Int[Array, "b l"]
  ) -> Float[Array, "b w"]:
    """Returns the normed token at each text's end."""
    length = ids.shape[1]
    if length > self.config.max_length:
      raise ValueError(
        f"CLIP: expected texts of at most {self.config.max_length} tokens; got {length}."
        " Tokenize to that length."
      )
    x = self.token_embedding[...][ids].astype(self.dtype)
    x = x + self.position_embedding[...][:length].astype(self.dtype)
    seen = jnp.tril(jnp.ones((length, length), bool)) & mask.astype(bool)[:, None, None, :]
    bias = jnp.where(seen, 0.0, HIDDEN)
    for layer in self.layers:
      x = layer(x, bias)
    legacy = self.config.eos_id == LEGACY_EOS
    end = jnp.argmax(ids if legacy else ids == self.config.eos_id, axis=1)
    # The norm is per position, so only the pooled position needs it.
    return self.final_norm(jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0])


class Clip(nnx.Module):
  """Images and texts to one joint space (contract `VisionEncoder`); parameters of a `CLIPModel`.

  Args:
    config: sizes and activation of both towers.
    dtype: of the computation; norms and attention weights are always in float32.
    param_dtype: in which parameters are kept; they are cast at use.
    rngs: stream `params` draws the initial weights (openai/CLIP `initialize_parameters`).
  """

  def __init__(
    self,
    config: ClipConfig,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    def projection(width: int) -> nnx.Linear:
      kwargs = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
      return dense(width, config.joint_width, width**-0.5, use_bias=False, **kwargs)

    self.config = config
    self.vision = ClipVision(config.vision, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
    self.text = ClipText(config.text, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
    self.image_projection = projection(config.vision.width)
    self.text_projection = projection(config.text.width)
    self.logit_scale = nnx.Param(jnp.asarray(config.initial_logit_scale, param_dtype))

  @property
  def sizes(self) -> VisionSizes:
    """See `VisionEncoder`."""
    return self.config.sizes

  @property
  def dtype(self) -> DTypeLike:
    """See `VisionEncoder`."""
    return self.vision.dtype

  def encode_image(
    self, pixels: Float[Array, "b h x 3"], keep: Int[Array, "b k"] | None = None
  ) -> tuple[Float[Array, "b v w"], Float[Array, "b f"]]:
    """Encodes images.

    Args:
      pixels: normalised as the checkpoint's processor does, at `config.vision.image_size`.
      keep: which patches to keep, row by row from 0; the others are dropped before the first
        layer, to save time in pretraining (Li et al. 2023, FLIP). CLS always stays.

    Returns:
      The vision tower's last hidden states with CLS first, not normed (transformers
      `last_hidden_state`), and the projected feature, not of unit length
      (`get_image_features`).
    """
    tokens, pooled = self.vision(pixels, keep)
    return tokens, self.image_projection(pooled)

  def encode_text(
    self, ids: Int[Array, "b l"], mask: Bool[Array, "b l"] | Int[Array, "b l"]
  ) -> Float[Array, "b f"]:
    """Encodes texts.

    Args:
      ids: tokens with both ends, padded on the right.
      mask: nonzero at tokens, zero at padding.

    Returns:
      The projected feature at each text's end, not of unit length (`get_text_features`).
    """
    return self.text_projection(self.text(ids, mask))
