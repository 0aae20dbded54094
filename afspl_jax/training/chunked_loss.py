"""The loss of many rows in the frozen language model, a chunk of rows at a time.

Rows do not affect each other in the language model, and each has one number to minimise. So a
chunk's gradient with respect to its prefixes is computed together with its loss, while the
activations exist, and only that gradient is kept for the backward pass. Memory is that of one chunk
for any number of rows.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from afspl_jax.models.captioner import Captioner
from afspl_jax.models.contracts import States
from afspl_jax.training.losses import token_cross_entropy
from afspl_jax.training.mesh import row_sharded
from afspl_jax.types import Batch, Params

# Rows that a device takes at a time. On a CPU so few that what a layer writes is still in the CPU's
# cache when the next layer reads it: 320 rows of the tiny pair in one chunk take 1.4 times as long.
_CPU_ROWS, _ROWS = 32, 256

_SHORTEST_CUT = 8  # target tokens; a shorter cut is not worth a compiled program of its own


class ChunkedLoss:
  """Computes the cost of each row of a batch, and the gradient with respect to its prefix.

  Args:
    captioner: the forward passes.
    label_smoothing: of the cross-entropy.
    mesh: devices that share a chunk.
    cuts: shares of the targets' padded length to which a chunk's targets may be cut. Rows are
      sorted by length first, and the shortest cut that fits is taken.
  """

  def __init__(
    self, captioner: Captioner, label_smoothing: float, mesh: Mesh, cuts: Sequence[float]
  ):
    self._captioner, self._label_smoothing, self._devices = captioner, label_smoothing, mesh.size
    self._cuts = sorted(cuts)
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    self._limit = mesh.size * (_CPU_ROWS if on_cpu else _ROWS)
    self._sharding = row_sharded(mesh, axis=1)

  def summaries(
    self, frozen: Params, prefix: Float[Array, "b x d"], batch: Batch
  ) -> Float[Array, "b d"]:
    """The language model's summary of each row, without a gradient."""

    def summarise_chunk(
      _: Array, prefix: Array, instruction: Array, instruction_mask: Array
    ) -> Array:
      encoded = self._captioner.encode_prefix(frozen, prefix, instruction, instruction_mask)
      return self._captioner.summarise(frozen, *encoded)

    rows = (jax.lax.stop_gradient(prefix), batch.instruction, batch.instruction_mask)
    return self._in_chunks(summarise_chunk, batch, rows)

  def __call__(
    self,
    frozen: Params,
    prefix: Float[Array, "b x d"],
    batch: Batch,
    weights: Float[Array, " b"],
    pull: Float[Array, "b d"] | None = None,
  ) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Computes each row's cost and cross-entropy.

    Args:
      frozen: the language model's leaves.
      prefix: vectors before the instruction.
      batch: the rows; their image features are not used.
      weights: of each row's cross-entropy.
      pull: gradient of another loss with respect to each row's summary.

    Returns:
      `weights * nats + <pull, summary>`, differentiable in `prefix` alone, and `nats`.
    """
    length = batch.targets.shape[1]
    shorter = (round(share * length) for share in self._cuts)
    cuts = [*(cut for cut in shorter if cut >= _SHORTEST_CUT), length]
    chunk_costs = functools.partial(self._chunk_costs, frozen, cuts)
    rows = (batch.instruction, batch.instruction_mask, batch.targets, batch.targets_mask)

    def costs_nats_gradients(prefix: Array) -> tuple[Array, Array, Array]:
      return self._in_chunks(chunk_costs, batch, (prefix, *rows, weights, pull))

    costs, nats = _with_kept_gradients(costs_nats_gradients)(prefix)
    return costs, jax.lax.stop_gradient(nats)

  def _chunk_costs(
    self,
    frozen: Params,
    cuts: list[int],
    longest: Int[Array, ""],
    prefix: Float[Array, "b x d"],
    instruction: Int[Array, "b l"],
    instruction_mask: Bool[Array, "b l"],
    targets: Int[Array, "b t"],
    mask: Bool[Array, "b t"],
    weights: Float[Array, " b"],
    pull: Float[Array, "b d"] | None,
  ) -> tuple[Float[Array, " b"], Float[Array, " b"], Float[Array, "b x d"]]:
    """Costs and cross-entropy of a chunk's rows, and the costs' gradient for the prefixes."""

    def encode(prefix: Array) -> tuple[States, Array]:
      return self._captioner.encode_prefix(frozen, prefix, instruction, instruction_mask)

    def gradient_of_cut(length: int) -> Callable[[States], Any]:
      def total(states: States) -> tuple[Array, tuple[Array, Array]]:
        logits = self._captioner.target_logits(frozen, states, seen, targets[:, :length])
        nats = self._nats(logits, targets[:, :length], mask[:, :length])
        costs = weights * nats
        if pull is not None:
          costs += jnp.sum(pull * self._captioner.summarise(frozen, states, seen), axis=-1)
        return costs.sum(), (costs, nats)

      return jax.grad(total, has_aux=True)

    # The prefix has one length in every chunk, so its encoding is not compiled for each cut.
    states, backward, seen = jax.vjp(encode, prefix, has_aux=True)
    cut = jnp.searchsorted(jnp.asarray(cuts), longest)
    grads, (costs, nats) = jax.lax.switch(cut, [gradient_of_cut(n) for n in cuts], states)
    return costs, nats, *backward(grads)

  def _nats(self, logits: Array, targets: Array, mask: Array) -> Float[Array, " b"]:
    def row_nats(logits: Array, targets: Array, mask: Array) -> Array:
      row = (logits[None], targets[None], mask[None])
      return token_cross_entropy(*row, self._label_smoothing).nats

    return jax.vmap(row_nats)(logits, targets, mask)

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

    def apply(chunk: Any) -> Any:
      lengths, rows = chunk
      return function(lengths.max(), *rows)

    out = jax.lax.map(apply, jax.tree.map(chunked, (lengths, rows)))
    unsorted = jnp.argsort(order)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[unsorted], out)


def _with_kept_gradients(
  function: Callable[[Array], tuple[Array, Array, Array]],
) -> Callable[[Array], tuple[Array, Array]]:
  """Makes a function of `(costs, nats)` from one that also gives the gradient of the costs.

  Its backward pass scales the kept gradients; `nats` have none.
  """

  @jax.custom_vjp
  def costs_and_nats(prefix: Array) -> tuple[Array, Array]:
    return function(prefix)[:2]

  def forward(prefix: Array) -> tuple[tuple[Array, Array], Array]:
    costs, nats, grads = function(prefix)
    return (costs, nats), grads

  def backward(grads: Array, cotangents: tuple[Array, Array]) -> tuple[Array]:
    return (cotangents[0][:, None, None] * grads,)

  costs_and_nats.defvjp(forward, backward)
  return costs_and_nats
