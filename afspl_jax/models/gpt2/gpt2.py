"""GPT-2 (Radford et al. 2019).

Computes what transformers' `GPT2LMHeadModel` computes without dropout.
"""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from afspl_jax.models.decoder_only import DecoderLayer, DecoderOnly
from afspl_jax.models.gpt2.config import Gpt2Config
from afspl_jax.models.layers.activations import ACTIVATIONS
from afspl_jax.models.layers.layer_norm import layer_norm
from afspl_jax.models.layers.products import dense

_STD = 0.02  # of initial weights: initializer_range


class Gpt2Layer(DecoderLayer):
  """Attention and MLP, each pre-norm and residual."""

  def __init__(
    self, config: Gpt2Config, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs
  ):
    kwargs = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
    width, residual = config.width, _STD * (2 * config.layers) ** -0.5
    self.config = config
    self.attention_norm = layer_norm(config, **kwargs)
    self.query_key_value = dense(width, 3 * width, _STD, **kwargs)
    self.out = dense(width, width, residual, **kwargs)
    self.mlp_norm = layer_norm(config, **kwargs)
    self.mlp_in = dense(width, config.mlp_width, _STD, **kwargs)
    self.mlp_out = dense(config.mlp_width, width, residual, **kwargs)

  def project(
    self, x: Float[Array, "b q d"], positions: Int[Array, "b q"]
  ) -> tuple[Float[Array, "b q h k"], Float[Array, "b q g k"], Float[Array, "b q g k"]]:
    """See `DecoderLayer`."""
    del positions
    shape = (*x.shape[:2], 3, self.config.heads, -1)
    parts = self.query_key_value(self.attention_norm(x)).reshape(shape)
    return parts[:, :, 0], parts[:, :, 1], parts[:, :, 2]

  def finish(
    self, x: Float[Array, "b q d"], mixed: Float[Array, "b q h k"]
  ) -> Float[Array, "b q d"]:
    """See `DecoderLayer`."""
    x = x + self.out(mixed.reshape(x.shape))
    h = ACTIVATIONS[self.config.activation](self.mlp_in(self.mlp_norm(x)))
    return x + self.mlp_out(h)


class Gpt2(DecoderOnly):
  """A decoder-only language model; parameters of a `GPT2LMHeadModel`.

  Args:
    config: sizes.
    dtype: of the computation; norms and attention weights are always in float32.
    param_dtype: in which parameters are kept; they are cast at use.
    rngs: stream `params` draws the initial weights (transformers `GPT2PreTrainedModel`).
  """

  def __init__(
    self,
    config: Gpt2Config,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    kwargs = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
    init = nnx.initializers.normal(_STD)
    words, places = (config.vocab_size, config.width), (config.positions, config.width)
    self.config, self.dtype = config, dtype
    self.embedding = nnx.Param(init(rngs.params(), words, param_dtype))
    self.position_embedding = nnx.Param(init(rngs.params(), places, param_dtype))
    self.layers = nnx.List(Gpt2Layer(config, **kwargs) for _ in range(config.layers))
    self.final_norm = layer_norm(config, **kwargs)

  def place(self, x: Float[Array, "b q d"], positions: Int[Array, "b q"]) -> Float[Array, "b q d"]:
    """See `DecoderOnly`."""
    return x + self.position_embedding[...][positions].astype(self.dtype)
