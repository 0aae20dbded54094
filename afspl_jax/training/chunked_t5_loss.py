"""The frozen T5's loss of many rows, whoever's prompter made them: a chunk of like rows at a time.

Rows do not meet in T5, and what is minimised of a row is one number. So a chunk's gradient for its
prefixes is computed along with its loss, while the activations are at hand, and nothing but that
gradient is kept for the backward pass: memory is that of one chunk, however many rows there are.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from afspl_jax.models.captioner import Captioner
from afspl_jax.models.contracts import States
from afspl_jax.training.losses import token_cross_entropy
from afspl_jax.types import Batch, Params

# Rows that a device takes at a time. On a CPU so few that what a layer writes is in the cache when
# the next one reads it: 320 rows of the tiny pair in one chunk take 1.4 times as long.
_CPU_ROWS, _ROWS = 32, 256

_SHORTEST_CUT = 8  # target tokens; a shorter one is not worth a compiled program of its own


class RowLoss:
  """What the rows of a batch cost, with the gradient for their prefixes.

  Args:
    captioner: the forward passes.
    label_smoothing: of the cross-entropy.
    mesh: devices that share a chunk.
    cuts: shares of the targets' padded length that the decoder may be cut to, besides all of it.
      Rows are sorted by length first.
  """

  def __init__(
    self, captioner: Captioner, label_smoothing: float, mesh: Mesh, cuts: Sequence[float]
  ):
    self._captioner, self._label_smoothing, self._devices = captioner, label_smoothing, mesh.size
    self._cuts = sorted(cuts)
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    self._limit = mesh.size * (_CPU_ROWS if on_cpu else _ROWS)
    self._sharding = NamedSharding(mesh, PartitionSpec(None, "data"))

  def states(
    self, frozen: Params, prefix: Float[Array, "b x d"], batch: Batch
  ) -> Float[Array, "b d"]:
    """The mean encoder state of each row, without a gradient."""

    def of_chunk(_: Array, prefix: Array, instruction: Array, instruction_mask: Array) -> Array:
      encoded = self._captioner.encode_prefix(frozen, prefix, instruction, instruction_mask)
      return self._captioner.summarise(frozen, *encoded)

    rows = (jax.lax.stop_gradient(prefix), batch.instruction, batch.instruction_mask)
    return self._in_chunks(of_chunk, batch, rows)

  def __call__(
    self,
    frozen: Params,
    prefix: Float[Array, "b x d"],
    batch: Batch,
    weights: Float[Array, " b"],
    pull: Float[Array, "b d"] | None = None,
  ) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """What is to be minimised of each row, and its cross-entropy.

    Args:
      frozen: T5's leaves.
      prefix: vectors before the instruction.
      batch: the rows; of its image nothing is looked at.
      weights: of each row's cross-entropy.
      pull: gradient of some other loss for the mean encoder state.

    Returns:
      `weights * nats + <pull, mean state>`, differentiable in `prefix` alone, and `nats`.
    """
    length = batch.targets.shape[1]
    shorter = (round(share * length) for share in self._cuts)
    cuts = [*(cut for cut in shorter if cut >= _SHORTEST_CUT), length]
    rows = (batch.instruction, batch.instruction_mask, batch.targets, batch.targets_mask)

    def of_chunk(longest, prefix, instruction, instruction_mask, targets, mask, weights, pull):
      def read(prefix: Array) -> tuple[States, Array]:
        return self._captioner.encode_prefix(frozen, prefix, instruction, instruction_mask)

      def cut_to(length: int) -> Callable[[States], Any]:
        def total(states: States) -> tuple[Array, tuple[Array, Array]]:
          logits = self._captioner.target_logits(frozen, states, seen, targets[:, :length])
          nats = self._nats(logits, targets[:, :length], mask[:, :length])
          costs = weights * nats
          if pull is not None:
            costs += jnp.sum(pull * self._captioner.summarise(frozen, states, seen), axis=-1)
          return costs.sum(), (costs, nats)

        return jax.grad(total, has_aux=True)

      # The encoder is as long in every chunk, and so outside of what is compiled for each cut.
      states, back, seen = jax.vjp(read, prefix, has_aux=True)
      enough = jnp.searchsorted(jnp.asarray(cuts), longest)
      grads, (costs, nats) = jax.lax.switch(enough, [cut_to(cut) for cut in cuts], states)
      return costs, nats, *back(grads)

    def all_three(prefix: Array) -> tuple[Array, Array, Array]:
      return self._in_chunks(of_chunk, batch, (prefix, *rows, weights, pull))

    @jax.custom_vjp
    def costs_and_nats(prefix: Array) -> tuple[Array, Array]:
      return all_three(prefix)[:2]

    def forward(prefix: Array) -> tuple[tuple[Array, Array], Array]:
      costs, nats, grads = all_three(prefix)
      return (costs, nats), grads

    def backward(grads: Array, cotangents: tuple[Array, Array]) -> tuple[Array]:
      return (cotangents[0][:, None, None] * grads,)

    costs_and_nats.defvjp(forward, backward)
    costs, nats = costs_and_nats(prefix)
    return costs, jax.lax.stop_gradient(nats)

  def _nats(self, logits: Array, targets: Array, mask: Array) -> Float[Array, " b"]:
    def of_row(logits: Array, targets: Array, mask: Array) -> Array:
      row = (logits[None], targets[None], mask[None])
      return token_cross_entropy(*row, self._label_smoothing).nats

    return jax.vmap(of_row)(logits, targets, mask)

  def _in_chunks(self, function: Callable[..., Any], batch: Batch, rows: Any) -> Any:
    """Maps `function(longest target, *rows)` over chunks of rows sorted by length."""
    position = jnp.arange(1, batch.targets.shape[1] + 1)
    lengths = jnp.max(position * batch.targets_mask, axis=1)
    order = jnp.argsort(lengths)
    number = -(-len(lengths) // self._limit)
    size = -(-len(lengths) // (number * self._devices)) * self._devices
    slots = jnp.pad(order, (0, number * size - len(lengths)), mode="edge")

    def chunked(x: Array) -> Array:
      chunks = x[slots].reshape(number, size, *x.shape[1:])
      return jax.lax.with_sharding_constraint(chunks, self._sharding)

    def of_chunk(chunk: Any) -> Any:
      lengths, rows = chunk
      return function(lengths.max(), *rows)

    out = jax.lax.map(of_chunk, jax.tree.map(chunked, (lengths, rows)))
    back = jnp.argsort(order)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[back], out)
