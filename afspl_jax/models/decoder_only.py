"""Decoder-only language models: all of the contract that does not depend on the kind of layer.

The text continues the prefix. The prefix is read once: its keys and values are the states, and a
target, or each step of decoding, attends to them. Padding may be anywhere in the prefix: nothing
attends to it, and positions count the others alone.
"""

import abc
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from afspl_jax.errors import UserError
from afspl_jax.models.contracts import LanguageSizes
from afspl_jax.models.layers.attention import HIDDEN, attend_grouped
from afspl_jax.models.layers.lineage import Lineage, fork_slots
from afspl_jax.models.layers.masks import hide_later, hide_padding, masked_mean
from afspl_jax.models.layers.products import einsum


class Prefix(NamedTuple):
  """A prefix that has been read; a pytree of arrays.

  Attributes:
    keys: for each layer; [b l g k].
    values: for each layer; [b l g k].
    hidden: the last layer's states after the final norm; those of padding have no meaning.
  """

  keys: tuple[Float[Array, "b l g k"], ...]
  values: tuple[Float[Array, "b l g k"], ...]
  hidden: Float[Array, "b l d"]


class DecoderOnlyCache(NamedTuple):
  """Keys and values of prefix and texts (contract `DecodeCache`); a pytree of arrays.

  Attributes:
    keys: for each layer: the prefix's, then the texts' in the slots of `Lineage`; [b g slots k].
    values: in the same slots; [b g slots k].
    prefix_bias: `HIDDEN` at the prefix's padding.
    first: the position of each text's first token.
    lineage: of the texts.
  """

  keys: tuple[Float[Array, "b g slots k"], ...]
  values: tuple[Float[Array, "b g slots k"], ...]
  prefix_bias: Float[Array, "b 1 1 l"]
  first: Int[Array, " b"]
  lineage: Lineage

  def fork(self, beams: int) -> "DecoderOnlyCache":
    """Gives each row `beams` texts that continue its only text."""
    before = self.prefix_bias.shape[-1]
    keys = tuple(fork_slots(x, beams, before) for x in self.keys)
    values = tuple(fork_slots(x, beams, before) for x in self.values)
    return self._replace(keys=keys, values=values, lineage=self.lineage.fork(beams))

  def follow(self, parents: Int[Array, "b beams"]) -> "DecoderOnlyCache":
    """Lets each text continue the row's text `parents`; several may share a parent."""
    return self._replace(lineage=self.lineage.follow(parents))


class DecoderLayer(nnx.Module, abc.ABC):
  """A layer, in two halves: before and after its attention."""

  @abc.abstractmethod
  def project(
    self, x: Float[Array, "b q d"], positions: Int[Array, "b q"]
  ) -> tuple[Float[Array, "b q h k"], Float[Array, "b q g k"], Float[Array, "b q g k"]]:
    """Queries, keys and values; g divides h."""

  @abc.abstractmethod
  def finish(
    self, x: Float[Array, "b q d"], mixed: Float[Array, "b q h k"]
  ) -> Float[Array, "b q d"]:
    """The layer's output, given its input and what attention gives."""


class DecoderOnly(nnx.Module, abc.ABC):
  """A decoder-only model (contract `LanguageModel`).

  A subclass makes the attributes below.

  Attributes:
    config: has width, vocab_size, positions (the most of prefix and text together) and eos_id.
    dtype: of the computation.
    embedding: the input embedding, [n d].
    layers: of `DecoderLayer`s.
    final_norm: before the head.
  """

  config: Any
  dtype: DTypeLike
  embedding: nnx.Param
  layers: nnx.List
  final_norm: nnx.Module

  def place(self, x: Float[Array, "b q d"], positions: Int[Array, "b q"]) -> Float[Array, "b q d"]:
    """Adds the embeddings of positions, if the model has any."""
    del positions
    return x

  def head_matrix(self) -> Float[Array, "d n"]:
    """The output matrix; here the embedding."""
    return self.embedding[...].T

  @property
  def sizes(self) -> LanguageSizes:
    """See `LanguageModel`; end tokens fill texts up, for few of these models have a pad token."""
    config = self.config
    return LanguageSizes(config.width, config.vocab_size, config.eos_id, config.eos_id)

  def embedding_matrix(self) -> Float[Array, "n d"]:
    """See `LanguageModel`."""
    return self.embedding[...]

  def embed(self, ids: Int[Array, "b l"]) -> Float[Array, "b l d"]:
    """See `LanguageModel`."""
    return self.embedding[...][ids].astype(self.dtype)

  def logits(self, hidden: Float[Array, "... d"]) -> Float[Array, "... n"]:
    """Scores the vocabulary in float32, given states after the final norm."""
    return einsum("...d,dn->...n", hidden, self.head_matrix().astype(self.dtype), jnp.float32)

  def encode(self, embeddings: Float[Array, "b l d"], mask: Bool[Array, "b l"]) -> Prefix:
    """See `LanguageModel`; the mask must keep a position of every row."""
    length = mask.shape[1]
    self._check_length(length)
    positions = jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)
    bias = jnp.minimum(hide_padding(mask), hide_later(length))
    x, keys, values = self.place(embeddings.astype(self.dtype), positions), [], []
    for layer in self.layers:
      x, key, value = _read(layer, x, positions, bias)
      keys.append(key)
      values.append(value)
    return Prefix(tuple(keys), tuple(values), self.final_norm(x))

  def summarise(self, prefix: Prefix, mask: Bool[Array, "b l"]) -> Float[Array, "b d"]:
    """The mean of the prefix's states."""
    return masked_mean(prefix.hidden, mask)

  def target_logits(
    self, prefix: Prefix, mask: Bool[Array, "b l"], targets: Int[Array, "b t"]
  ) -> Float[Array, "b t n"]:
    """See `LanguageModel`."""
    last, inputs = _last(prefix.hidden, mask)[:, None], targets[:, :-1]
    number = inputs.shape[1]
    self._check_length(mask.shape[1] + number)
    if not number:
      return self.logits(last)
    positions = _number(mask)[:, None] + jnp.arange(number)
    padding = jnp.broadcast_to(hide_padding(mask), (len(mask), 1, number, mask.shape[1]))
    later = jnp.broadcast_to(hide_later(number), (len(mask), 1, number, number))
    bias, x = jnp.concatenate([padding, later], axis=-1), self.place(self.embed(inputs), positions)
    for layer, keys, values in zip(self.layers, prefix.keys, prefix.values, strict=True):
      x = _continue(layer, x, positions, bias, keys, values)
    return self.logits(jnp.concatenate([last, self.final_norm(x)], axis=1))

  def start(
    self, prefix: Prefix, mask: Bool[Array, "b l"], length: int
  ) -> tuple[Float[Array, "b n"], DecoderOnlyCache]:
    """See `LanguageModel`."""
    self._check_length(mask.shape[1] + length - 1)
    room = ((0, 0), (0, 0), (0, length), (0, 0))
    keys, values = (
      tuple(jnp.pad(x.swapaxes(1, 2), room) for x in arrays)
      for arrays in (prefix.keys, prefix.values)
    )
    lineage = Lineage.start(len(mask), length)
    cache = DecoderOnlyCache(keys, values, hide_padding(mask), _number(mask), lineage)
    return self.logits(_last(prefix.hidden, mask)), cache

  def decode_step(
    self, ids: Int[Array, " r"], cache: DecoderOnlyCache
  ) -> tuple[Float[Array, "r n"], DecoderOnlyCache]:
    """See `LanguageModel`."""
    rows, beams, length = cache.lineage.ancestors.shape
    step, before = cache.lineage.step, cache.prefix_bias.shape[-1]
    lineage, seen = cache.lineage.advance()
    own = jnp.where(seen, 0.0, HIDDEN).reshape(rows, 1, beams, length * beams)
    padding = jnp.broadcast_to(cache.prefix_bias, (rows, 1, beams, before))
    bias = jnp.concatenate([padding, own], axis=-1)
    positions = jnp.broadcast_to((cache.first + step)[:, None], (rows, beams))
    x = self.place(self.embed(ids.reshape(rows, beams)), positions)
    all_keys, all_values, at = list(cache.keys), list(cache.values), before + step * beams
    for i, layer in enumerate(self.layers):
      query, key, value = layer.project(x, positions)
      for store, new in ((all_keys, key), (all_values, value)):
        store[i] = jax.lax.dynamic_update_slice(store[i], new.swapaxes(1, 2), (0, 0, at, 0))
      # Attention swaps them back, and XLA drops both swaps: the cache is not copied at a step.
      keys, values = all_keys[i].swapaxes(1, 2), all_values[i].swapaxes(1, 2)
      x = layer.finish(x, _attend(query, keys, values, bias))
    logits = self.logits(self.final_norm(x)).reshape(rows * beams, -1)
    return logits, cache._replace(keys=tuple(all_keys), values=tuple(all_values), lineage=lineage)

  def _check_length(self, length: int) -> None:
    if length > self.config.positions:
      raise UserError(
        f"expected a prefix and a text of at most {self.config.positions} tokens together, the"
        f" positions that the language model knows; got {length}. Lower data.instruction_length,"
        " data.target_length or eval.max_tokens."
      )


def _attend(
  query: Float[Array, "b q h k"],
  keys: Float[Array, "b m g k"],
  values: Float[Array, "b m g k"],
  bias: Float[Array, "b 1 q m"],
) -> Float[Array, "b q h k"]:
  return attend_grouped(query, keys, values, bias, query.shape[-1] ** -0.5)


# Jitted separately, so that the equal layers of a model are traced once.
@jax.jit
def _read(
  layer: DecoderLayer,
  x: Float[Array, "b q d"],
  positions: Int[Array, "b q"],
  bias: Float[Array, "b 1 q q"],
) -> tuple[Float[Array, "b q d"], Float[Array, "b q g k"], Float[Array, "b q g k"]]:
  """One layer over the prefix: its output, keys and values."""
  query, keys, values = layer.project(x, positions)
  return layer.finish(x, _attend(query, keys, values, bias)), keys, values


@jax.jit
def _continue(
  layer: DecoderLayer,
  x: Float[Array, "b q d"],
  positions: Int[Array, "b q"],
  bias: Float[Array, "b 1 q m"],
  keys: Float[Array, "b l g k"],
  values: Float[Array, "b l g k"],
) -> Float[Array, "b q d"]:
  """One layer over a text, all steps at once, given the prefix's keys and values."""
  query, own_keys, own_values = layer.project(x, positions)
  all_keys = jnp.concatenate([keys, own_keys], axis=1)
  all_values = jnp.concatenate([values, own_values], axis=1)
  return layer.finish(x, _attend(query, all_keys, all_values, bias))


def _number(mask: Bool[Array, "b l"]) -> Int[Array, " b"]:
  return mask.sum(axis=1, dtype=jnp.int32)


def _last(hidden: Float[Array, "b l d"], mask: Bool[Array, "b l"]) -> Float[Array, "b d"]:
  """The states of each row's last position that is not padding."""
  last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
  return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
