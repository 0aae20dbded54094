"""Greedy decoding in one jitted loop with a key-value cache."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from afspl_jax.backbones.t5 import DecodeCache
from afspl_jax.captioner import Captioner
from afspl_jax.types import Batch, Params


class Decoded(NamedTuple):
  """Generated ids, with how each sample was prompted."""

  ids: Int[Array, "b t"]  # end token and padding included
  fusion: Float[Array, "b s"]
  pool: Float[Array, "b m"]


class _Loop(NamedTuple):
  step: Int[Array, ""]
  last: Int[Array, " b"]
  done: Bool[Array, " b"]
  ids: Int[Array, "b t"]
  cache: DecodeCache


def make_greedy(
  captioner: Captioner, max_tokens: int, mesh: Mesh
) -> Callable[[Params, Params, Batch], Decoded]:
  """Compiles `(params, frozen, batch) -> Decoded`; stops once every row has ended.

  Cross-attention keys and values are computed once a batch (transformers `generate`, greedy).
  """

  def greedy(params: Params, frozen: Params, batch: Batch) -> Decoded:
    encoded = captioner.encode(params, frozen, batch)
    rows = batch.instruction.shape[0]
    pad, end = captioner.pad_id, captioner.eos_id
    start = _Loop(
      step=jnp.zeros((), jnp.int32),
      last=jnp.full((rows,), pad, jnp.int32),
      done=jnp.zeros((rows,), bool),
      ids=jnp.full((rows, max_tokens), pad, jnp.int32),
      cache=captioner.start_cache(frozen, encoded, max_tokens),
    )

    def body(loop: _Loop) -> _Loop:
      logits, cache = captioner.decode_step(frozen, loop.last, loop.cache)
      token = jnp.where(loop.done, pad, jnp.argmax(logits, axis=-1).astype(jnp.int32))
      ids = jax.lax.dynamic_update_index_in_dim(loop.ids, token, loop.step, axis=1)
      return _Loop(loop.step + 1, token, loop.done | (token == end), ids, cache)

    def unfinished(loop: _Loop) -> Bool[Array, ""]:
      return (loop.step < max_tokens) & ~loop.done.all()

    loop = jax.lax.while_loop(unfinished, body, start)
    return Decoded(loop.ids, encoded.prompted.fusion, encoded.prompted.pool.weights)

  everywhere = NamedSharding(mesh, PartitionSpec())
  rows = NamedSharding(mesh, PartitionSpec("data"))
  return jax.jit(greedy, in_shardings=(everywhere, everywhere, rows), out_shardings=rows)
