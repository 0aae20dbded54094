"""T5 v1.0, v1.1 and Flan-T5: encoder, decoder and head (Raffel et al. 2020; Chung et al. 2022).

Computes what transformers' `T5ForConditionalGeneration` computes without dropout.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from afspl_jax.models.contracts import LanguageSizes
from afspl_jax.models.layers.attention import HIDDEN
from afspl_jax.models.layers.lineage import Lineage
from afspl_jax.models.layers.masks import hide_later, hide_padding, masked_mean
from afspl_jax.models.layers.products import einsum
from afspl_jax.models.t5.cache import T5Cache
from afspl_jax.models.t5.config import T5Config
from afspl_jax.models.t5.layers import T5Stack, decoder_layer, encoder_layer


def shift_right(labels: Int[Array, "b t"], pad_id: int = 0) -> Int[Array, "b t"]:
  """Makes the decoder's input from its targets (transformers `_shift_right`).

  Args:
    labels: target ids; negative where the loss ignores them.
    pad_id: starts the decoder, and stands in for ignored targets.

  Returns:
    The targets moved one step later, after `pad_id`.
  """
  shifted = jnp.pad(labels[:, :-1], ((0, 0), (1, 0)), constant_values=pad_id)
  return jnp.where(shifted < 0, pad_id, shifted)


def _swap(x: Float[Array, "b i j k"]) -> Float[Array, "b j i k"]:
  """Swaps positions and heads: attention takes positions first, and the cache has heads first."""
  return x.swapaxes(1, 2)


class T5(nnx.Module):
  """An encoder-decoder (contract `LanguageModel`); parameters of a `T5ForConditionalGeneration`.

  Args:
    config: sizes and variant.
    dtype: of the computation; norms and attention weights are always in float32.
    param_dtype: in which parameters are kept; they are cast at use.
    rngs: stream `params` draws the initial weights (transformers `T5PreTrainedModel`).
  """

  def __init__(
    self,
    config: T5Config,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    init, size = nnx.initializers.normal(1.0), (config.vocab_size, config.width)
    self.config = config
    self.dtype = dtype
    self.embedding = nnx.Param(init(rngs.params(), size, param_dtype))
    self.encoder = T5Stack(config, False, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
    self.decoder = T5Stack(config, True, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
    if not config.tied_head:
      self.head = nnx.Param(init(rngs.params(), size[::-1], param_dtype))

  @property
  def sizes(self) -> LanguageSizes:
    """See `LanguageModel`."""
    config = self.config
    ids = {"pad_id": config.pad_id, "eos_id": config.eos_id, "start_id": config.pad_id}
    return LanguageSizes(config.width, config.vocab_size, **ids)

  def embedding_matrix(self) -> Float[Array, "n d"]:
    """See `LanguageModel`."""
    return self.embedding[...]

  def embed(self, ids: Int[Array, "b l"]) -> Float[Array, "b l d"]:
    """Looks up the embeddings that `encode` takes."""
    return self.embedding[...][ids].astype(self.dtype)

  def encode(
    self, embeddings: Float[Array, "b l d"], mask: Bool[Array, "b l"]
  ) -> Float[Array, "b l d"]:
    """Encodes embeddings of tokens or soft prompts (Lester et al. 2021, sec. 2).

    Args:
      embeddings: in any float dtype.
      mask: true where a position may be attended to.

    Returns:
      The last hidden states after the final norm; those at masked positions have no meaning.
    """
    x = embeddings.astype(self.dtype)
    bias = self.encoder.bias(x.shape[1]) + hide_padding(mask)
    for layer in self.encoder.layers:
      x = encoder_layer(layer, x, bias)
    return self.encoder.final_norm(x)

  def decode(
    self,
    ids: Int[Array, "b t"],
    encoded: Float[Array, "b l d"],
    mask: Bool[Array, "b l"],
  ) -> Float[Array, "b t d"]:
    """Runs the decoder over given inputs, all steps at once.

    Args:
      ids: the decoder's inputs, from `shift_right`.
      encoded: from `encode`.
      mask: the mask that `encode` was given.

    Returns:
      The hidden states after the final norm, for `logits`.
    """
    x, length = self.embed(ids), ids.shape[1]
    bias = self.decoder.bias(length) + hide_later(length)
    cross_bias = hide_padding(mask)
    for layer in self.decoder.layers:
      x = decoder_layer(layer, x, bias, encoded, cross_bias)
    return self.decoder.final_norm(x)

  def logits(self, hidden: Float[Array, "... d"]) -> Float[Array, "... n"]:
    """Scores the vocabulary.

    Args:
      hidden: from `decode`, in any leading shape; pass only the positions that count, because this
        is the most expensive product of a small model.

    Returns:
      float32 logits.
    """
    config = self.config
    if config.scaled_head:
      hidden = hidden * config.width**-0.5
    matrix = self.embedding[...].T if config.tied_head else self.head[...]
    return einsum("...d,dn->...n", hidden, matrix.astype(self.dtype), jnp.float32)

  def summarise(
    self, encoded: Float[Array, "b l d"], mask: Bool[Array, "b l"]
  ) -> Float[Array, "b d"]:
    """The mean of the encoder states that `mask` keeps."""
    return masked_mean(encoded, mask)

  def target_logits(
    self,
    encoded: Float[Array, "b l d"],
    mask: Bool[Array, "b l"],
    targets: Int[Array, "b t"],
  ) -> Float[Array, "b t n"]:
    """See `LanguageModel`."""
    return self.logits(self.decode(shift_right(targets, self.config.pad_id), encoded, mask))

  def start_cache(
    self, encoded: Float[Array, "b l d"], mask: Bool[Array, "b l"], length: int
  ) -> T5Cache:
    """Prepares step-by-step decoding.

    Args:
      encoded: from `encode`.
      mask: the mask that `encode` was given.
      length: the most steps that will be taken; a further step would overwrite the last.

    Returns:
      A cache with no tokens, and the cross-attention's keys and values.
    """
    cross = [layer.cross_attention.keys_values(encoded) for layer in self.decoder.layers]
    keys, values = (tuple(map(_swap, arrays)) for arrays in zip(*cross, strict=True))
    rows, heads, _, width = keys[0].shape
    # Separate buffers, so that a caller may donate the cache.
    own_keys, own_values = (
      tuple(jnp.zeros((rows, heads, length, width), x.dtype) for x in keys) for _ in range(2)
    )
    bias, lineage = self.decoder.bias(length), Lineage.start(rows, length)
    return T5Cache(own_keys, own_values, keys, values, bias, hide_padding(mask), lineage)

  def start(
    self, encoded: Float[Array, "b l d"], mask: Bool[Array, "b l"], length: int
  ) -> tuple[Float[Array, "b n"], T5Cache]:
    """Takes the step of the start token; see `LanguageModel`."""
    first = jnp.full(len(encoded), self.config.pad_id, jnp.int32)
    return self.decode_step(first, self.start_cache(encoded, mask, length))

  def decode_step(
    self, ids: Int[Array, " r"], cache: T5Cache
  ) -> tuple[Float[Array, "r n"], T5Cache]:
    """Takes one step; gives what `decode` and `logits` give at this position.

    Args:
      ids: the newest token of each text, a row's texts next to each other; `config.pad_id` first.
      cache: from `start_cache` or the previous step.

    Returns:
      float32 logits of the next token, and the cache with this one in it.
    """
    step, (rows, beams, length) = cache.step, cache.lineage.ancestors.shape
    x = self.embed(ids.reshape(rows, beams))
    lineage, seen = cache.lineage.advance()
    bias = jax.lax.dynamic_slice_in_dim(cache.bias, step, 1, axis=2)[..., None]
    bias = (bias + jnp.where(seen, 0.0, HIDDEN)[:, None]).reshape(rows, -1, beams, length * beams)
    self_keys, self_values, at = list(cache.self_keys), list(cache.self_values), step * beams
    for i, layer in enumerate(self.decoder.layers):
      h = layer.self_norm(x)
      key, value = map(_swap, layer.self_attention.keys_values(h))
      self_keys[i] = jax.lax.dynamic_update_slice(self_keys[i], key, (0, 0, at, 0))
      self_values[i] = jax.lax.dynamic_update_slice(self_values[i], value, (0, 0, at, 0))
      # Attention swaps them back, and XLA drops both swaps: the cache is not copied at a step.
      x = x + layer.self_attention(h, _swap(self_keys[i]), _swap(self_values[i]), bias)
      cross = _swap(cache.cross_keys[i]), _swap(cache.cross_values[i])
      x = layer.transform(layer.attend_cross(x, *cross, cache.cross_bias))
    logits = self.logits(self.decoder.final_norm(x)).reshape(rows * beams, -1)
    cache = cache._replace(self_keys=tuple(self_keys), self_values=tuple(self_values))
    return logits, cache._replace(lineage=lineage)
