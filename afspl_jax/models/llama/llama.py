"""Decoders in the form of Llama, such as SmolLM2 and TinyLlama (Touvron et al. 2023).

Computes what transformers' `LlamaForCausalLM` computes without dropout.
"""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from afspl_jax.models.decoder_only import DecoderLayer, DecoderOnly
from afspl_jax.models.layers.activations import ACTIVATIONS
from afspl_jax.models.layers.products import dense
from afspl_jax.models.layers.rotary import frequencies, rotate
from afspl_jax.models.llama.config import LlamaConfig

_STD = 0.02  # of initial weights: initializer_range


class LlamaLayer(DecoderLayer):
  """Attention with rotated queries and keys, and a gated MLP, each pre-norm and residual."""

  def __init__(
    self, config: LlamaConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs
  ):
    kwargs = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}

    def linear(inputs: int, outputs: int, bias: bool) -> nnx.Linear:
      return dense(inputs, outputs, _STD, use_bias=bias, **kwargs)

    width, head, bias = config.width, config.head_width, config.attention_bias
    self.config = config
    self.attention_norm = nnx.RMSNorm(width, epsilon=config.norm_epsilon, **kwargs)
    self.query = linear(width, config.heads * head, bias)
    self.key = linear(width, config.groups * head, bias)
    self.value = linear(width, config.groups * head, bias)
    self.out = linear(config.heads * head, width, bias)
    self.mlp_norm = nnx.RMSNorm(width, epsilon=config.norm_epsilon, **kwargs)
    self.gate = linear(width, config.mlp_width, config.mlp_bias)
    self.up = linear(width, config.mlp_width, config.mlp_bias)
    self.down = linear(config.mlp_width, width, config.mlp_bias)

  def project(
    self, x: Float[Array, "b q d"], positions: Int[Array, "b q"]
  ) -> tuple[Float[Array, "b q h k"], Float[Array, "b q g k"], Float[Array, "b q g k"]]:
    """See `DecoderLayer`."""
    config, h = self.config, self.attention_norm(x)
    angles = frequencies(config.head_width, config.rope_base, config.stretch)
    shape = (*x.shape[:2], -1, config.head_width)
    query, key, value = (f(h).reshape(shape) for f in (self.query, self.key, self.value))
    return rotate(query, positions, angles), rotate(key, positions, angles), value

  def finish(
    self, x: Float[Array, "b q d"], mixed: Float[Array, "b q h k"]
  ) -> Float[Array, "b q d"]:
    """See `DecoderLayer`."""
    x = x + self.out(mixed.reshape(*x.shape[:2], -1))
    h = self.mlp_norm(x)
    return x + self.down(ACTIVATIONS[self.config.activation](self.gate(h)) * self.up(h))


class Llama(DecoderOnly):
  """A decoder-only language model; parameters of a `LlamaForCausalLM`.

  Args:
    config: sizes and variant.
    dtype: of the computation; norms and attention weights are always in float32.
    param_dtype: in which parameters are kept; they are cast at use.
    rngs: stream `params` draws the initial weights (transformers `LlamaPreTrainedModel`).
  """

  def __init__(
    self,
    config: LlamaConfig,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    kwargs = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
    init, size = nnx.initializers.normal(_STD), (config.vocab_size, config.width)
    self.config, self.dtype = config, dtype
    self.embedding = nnx.Param(init(rngs.params(), size, param_dtype))
    self.layers = nnx.List(LlamaLayer(config, **kwargs) for _ in range(config.layers))
    self.final_norm = nnx.RMSNorm(config.width, epsilon=config.norm_epsilon, **kwargs)
    if not config.tied_head:
      self.head = nnx.Param(init(rngs.params(), size[::-1], param_dtype))

  def head_matrix(self) -> Float[Array, "d n"]:
    """See `DecoderOnly`."""
    return super().head_matrix() if self.config.tied_head else self.head[...]
