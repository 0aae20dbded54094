"""The frozen T5's loss of many rows, whoever's prompter made them: a chunk of like rows at a time.

Rows do not meet in T5, and what is minimised of a row is one number. So a chunk's gradient for its
prefixes is computed along with its loss, while the activations are at hand, and nothing but that
gradient is kept for the backward pass: memory is that of one chunk, however many rows there are.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from afspl_jax.captioner import Captioner, mean_state
from afspl_jax.head_loss import head_nats
from afspl_jax.types import Batch, Params

# Rows that a device takes at a time. On a CPU so few that what a layer writes is in the cache when
# the next one reads it: 320 rows of the tiny pair in one chunk take 1.4 times as long.
_CPU_ROWS, _ROWS = 32, 256

# Tokens whose logits exist at a time.
_CPU_TOKENS, _TOKENS = 64, 1024

# Shares of the targets' padded length that a chunk's decoder may be cut to, each of which is
# compiled. Rows are sorted by length first; where captions and answers are mixed, a step takes 0.82
# of the time that it takes without cuts.
_CUTS, _SHORTEST_CUT = (0.2, 0.4, 0.5, 0.7), 8


class RowLoss:
  """What the rows of a batch cost, with the gradient for their prefixes.

  Each device sorts and cuts the rows that it holds: none is sent to another.

  Args:
    captioner: the forward passes.
    label_smoothing: of the cross-entropy.
    mesh: devices that share the rows.
  """

  def __init__(self, captioner: Captioner, label_smoothing: float, mesh: Mesh):
    self._captioner, self._label_smoothing, self._mesh = captioner, label_smoothing, mesh
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    self._rows, self._tokens = (_CPU_ROWS, _CPU_TOKENS) if on_cpu else (_ROWS, _TOKENS)

  def states(
    self, frozen: Params, prefix: Float[Array, "b x d"], batch: Batch
  ) -> Float[Array, "b d"]:
    """The mean encoder state of each row, without a gradient."""

    def of_chunk(frozen: Params, _: Array, *rows: Array) -> Array:
      return mean_state(*self._captioner.read(frozen, *rows))

    rows = (jax.lax.stop_gradient(prefix), batch.instruction, batch.instruction_mask)
    return self._in_chunks(of_chunk, frozen, batch, rows)

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
    rows = (batch.instruction, batch.instruction_mask, batch.targets, batch.targets_mask)

    def all_three(prefix: Array) -> tuple[Array, Array, Array]:
      return self._in_chunks(self._of_chunk, frozen, batch, (prefix, *rows, weights, pull))

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

  def _of_chunk(
    self,
    frozen: Params,
    longest: Array,
    prefix: Array,
    instruction: Array,
    instruction_mask: Array,
    targets: Array,
    mask: Array,
    weights: Array,
    pull: Array | None,
  ) -> tuple[Array, Array, Array]:
    """Costs, nats, and the costs' gradient for the prefix."""

    def read(prefix: Array) -> tuple[Array, Array]:
      return self._captioner.read(frozen, prefix, instruction, instruction_mask)

    def cut_to(length: int) -> Callable[[Array], Any]:
      said, counts = targets[:, :length], mask[:, :length]

      def total(states: Array) -> tuple[Array, tuple[Array, Array]]:
        hidden = self._captioner.teach(frozen, states, seen, said)
        head = functools.partial(self._captioner.head, frozen)
        nats = head_nats(head, hidden, said, counts, self._label_smoothing, self._tokens)
        costs = weights * nats
        if pull is not None:
          costs += jnp.sum(pull * mean_state(states, seen), axis=-1)
        return costs.sum(), (costs, nats)

      return jax.grad(total, has_aux=True)

    length = targets.shape[1]
    shorter = (round(share * length) for share in _CUTS)
    cuts = [*(cut for cut in shorter if cut >= _SHORTEST_CUT), length]
    # The encoder, whose length is the same in all chunks, outside of what is compiled for each cut.
    states, back, seen = jax.vjp(read, prefix, has_aux=True)
    enough = jnp.searchsorted(jnp.asarray(cuts), longest)
    grads, (costs, nats) = jax.lax.switch(enough, [cut_to(cut) for cut in cuts], states)
    return costs, nats, *back(grads)

  def _in_chunks(
    self, function: Callable[..., Any], frozen: Params, batch: Batch, rows: tuple[Any, ...]
  ) -> Any:
    """Maps `function(frozen, longest target, *rows)` over chunks of rows of like length."""

    def on_device(frozen: Params, mask: Array, *rows: Any) -> Any:
      lengths = jnp.max(jnp.arange(1, mask.shape[1] + 1) * mask, axis=1)
      order = jnp.argsort(lengths)
      number = -(-len(lengths) // self._rows)
      size = -(-len(lengths) // number)
      slots = jnp.pad(order, (0, number * size - len(lengths)), mode="edge")
      chunks = jax.tree.map(lambda x: x[slots].reshape(number, size, *x.shape[1:]), (lengths, rows))
      of_chunk = lambda chunk: function(frozen, chunk[0].max(), *chunk[1])  # noqa: E731
      out = jax.lax.map(of_chunk, chunks)
      back = jnp.argsort(order)
      return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[back], out)

    everywhere, over_rows = PartitionSpec(), PartitionSpec("data")
    specs = (everywhere, *[over_rows] * (1 + len(rows)))
    local = jax.shard_map(
      on_device, mesh=self._mesh, in_specs=specs, out_specs=over_rows, check_vma=False
    )
    return local(frozen, batch.targets_mask, *rows)
