"""DP-SGD: local steps in which no example weighs more than a bound, under noise.

Abadi et al. 2016, algorithm 1. Rows meet nowhere but in the sum of their gradients: an example's is
that of its own token mean. What T5's backward pass gives for the rows' prefixes is that gradient up
to the prompter. So T5 sees the rows of all clients as one batch, as in the ordinary step, and only
the way through the prompter is taken example by example, a few at a time. Beside the ordinary step
of as many rows it takes 1.06 times as long and no more memory; `jax_privacy.clipped_grad`, which
maps the whole loss over examples, takes 1.7 times as long and six times the memory (10 clients of
16 rows, the tiny pair, two cores).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from afspl_jax.config.experiment import Optim, Privacy
from afspl_jax.federation.privacy.noise import grid
from afspl_jax.models.captioner import Captioner, prefix
from afspl_jax.training.chunked_t5_loss import RowLoss
from afspl_jax.training.train_step import (
  Penalty,
  StepMetrics,
  TrainState,
  check_divides,
  make_optimizer,
  make_schedule,
  merge_clients,
  split_clients,
  take_step,
)
from afspl_jax.types import Batch, Params

_FLOATS = 2**24  # of examples' gradients that are held at a time

# Float32 rounds norms and sums, so examples are held to a bound this much below the stated one.
_MARGIN = 1e-5


class StepNoise(NamedTuple):
  """What comes from the operating system's randomness, and what is public of a client's draws."""

  noise: Params  # [k c ...]: for the sum of each step's bounded gradients
  expected: Float[Array, " c"]  # examples in a batch, on average


def make_private_training(
  captioner: Captioner,
  optim: Optim,
  privacy: Privacy,
  rounds: int,
  penalty: Penalty,
  mesh: Mesh,
) -> Callable[..., tuple[Params, StepMetrics]]:
  """Compiles a cohort's round of DP-SGD.

  It takes what `step.make_local_training`'s program takes, and `StepNoise` last. Batches are of any
  number of rows that the devices divide, and hold the examples that were drawn and rows that do
  not count. Noise and the division by what is expected, which tells nothing of the draw, are in the
  gradient that Adam sees; so all that comes after a step follows from what is already private.
  What is told of the steps (StepMetrics) is not, and must not leave a client.

  Raises:
    UserError: batches that cannot be split evenly over the devices.
  """
  check_divides(optim.batch_size, mesh, "optim.batch_size")
  optimizer, schedule = make_optimizer(optim), make_schedule(optim, rounds)
  row_loss = RowLoss(captioner, optim.label_smoothing, mesh, optim.target_cuts)
  noisy = functools.partial(_noisy, std=privacy.example_clip * privacy.example_noise)

  def train_step(
    state: TrainState, frozen: Params, start: Params, batch: Batch, noise: Params, expected: Array
  ) -> tuple[TrainState, StepMetrics]:
    merged, clients = merge_clients(batch), len(batch.targets)
    prompted = jax.vmap(captioner.prompt)(state.params, batch)
    tokens = jnp.maximum(jnp.sum(merged.targets_mask, axis=1, dtype=jnp.float32), 1.0)

    def of_rows(made: Array) -> tuple[Array, Array]:
      costs, nats = row_loss(frozen, made, merged, 1 / tokens)
      return costs.sum(), nats

    pull, nats = jax.grad(of_rows, has_aux=True)(merge_clients(jax.vmap(prefix)(prompted)))
    sums = clipped_sums(
      captioner, privacy.example_clip, state.params, batch, split_clients(pull, clients), mesh
    )
    means = jax.vmap(lambda of, by: jax.tree.map(lambda x: x / by, of))(
      jax.tree.map(noisy, sums, noise), expected
    )
    pulls = jax.vmap(jax.grad(penalty))(state.params, start)
    grads = jax.tree.map(jnp.add, means, pulls)
    move = functools.partial(take_step, optimizer, schedule(state.step))
    nothing = jnp.zeros(clients)
    moved = jax.vmap(move)(nothing, grads, state.params, state.opt_state)
    params, opt_state, _, norm, finite = moved
    rows = batch.targets_mask.any(axis=-1).astype(jnp.float32)
    number = jnp.maximum(rows.sum(axis=1), 1.0)
    loss = split_clients(nats / tokens, clients).sum(axis=1) / number
    chosen = (prompted.pool.weights > 0).astype(jnp.float32)
    usage = jnp.einsum("cb,cbm->cm", rows, chosen) / number[:, None]
    metrics = StepMetrics(loss, nothing, nothing, norm, finite, usage)
    return TrainState(params, opt_state, state.step + 1), metrics

  def training(
    params: Params,
    frozen: Params,
    global_params: Params,
    batches: Batch,
    first_step: Int[Array, ""],
    secret: StepNoise,
  ) -> tuple[Params, StepMetrics]:
    def step(state: TrainState, drawn: tuple[Batch, Params]) -> tuple[TrainState, StepMetrics]:
      return train_step(state, frozen, global_params, *drawn, secret.expected)

    start = TrainState(params, jax.vmap(optimizer.init)(params), first_step)
    state, metrics = jax.lax.scan(step, start, (batches, secret.noise))
    return state.params, metrics

  everywhere = NamedSharding(mesh, PartitionSpec())
  rows = NamedSharding(mesh, PartitionSpec(None, None, "data"))
  return jax.jit(
    training,
    in_shardings=(everywhere, everywhere, everywhere, rows, everywhere, everywhere),
    out_shardings=everywhere,
    donate_argnums=0,
  )


def clipped_sums(
  captioner: Captioner,
  clip: float,
  params: Params,
  batch: Batch,
  pull: Float[Array, "c b x d"],
  mesh: Mesh,
) -> Params:
  """Each client's sum of its examples' gradients, none longer than `clip`, shared and own leaves.

  An example whose gradient is not finite adds nothing.

  Args:
    captioner: the forward passes.
    clip: the L2 norm that no example's gradient exceeds.
    params: of each client.
    batch: of each client; of its targets nothing is looked at.
    pull: the gradient of each example's loss for its prefix.
    mesh: devices that share the rows.
  """

  def gradient(params: Params, example: Batch, pull: Array) -> Params:
    alone = jax.tree.map(lambda x: x[None], example)
    _, back = jax.vjp(lambda params: prefix(captioner.prompt(params, alone)), params)
    return back(pull[None])[0]

  def clipped(params: Params, examples: tuple[Batch, Array]) -> Params:
    grads = jax.vmap(gradient, in_axes=(None, 0, 0))(params, *examples)
    norms = jax.vmap(optax.tree.norm)(grads)
    share = jnp.minimum(1.0, clip * (1 - _MARGIN) / jnp.maximum(norms, 1e-30))

    def of_leaf(grads: Array) -> Array:
      across = (-1, *[1] * (grads.ndim - 1))
      counts = jnp.isfinite(norms).reshape(across)
      return jnp.sum(jnp.where(counts, share.reshape(across) * grads, 0.0), axis=0)

    return jax.tree.map(of_leaf, grads)

  clients, rows = pull.shape[:2]
  size = _rows_at_once(rows, sum(leaf.size for leaf in jax.tree.leaves(params)), mesh.size)
  sharding = NamedSharding(mesh, PartitionSpec(None, None, "data"))

  def chunked(x: Array) -> Array:
    chunks = x.reshape(clients, rows // size, size, *x.shape[2:]).swapaxes(0, 1)
    return jax.lax.with_sharding_constraint(chunks, sharding)

  def add(total: Params, chunk: tuple[Batch, Array]) -> tuple[Params, None]:
    return jax.tree.map(jnp.add, total, jax.vmap(clipped)(params, chunk)), None

  nothing = jax.tree.map(jnp.zeros_like, params)
  return jax.lax.scan(add, nothing, jax.tree.map(chunked, (batch, pull)))[0]


def _rows_at_once(rows: int, floats: int, devices: int) -> int:
  """The most rows of each client, dividing `rows`, whose gradients are not too many to hold."""
  fit = max(_FLOATS // floats, 1)
  whole = (n for n in range(devices, rows + 1, devices) if rows % n == 0)
  return max((n for n in whole if n <= fit), default=devices)


def _noisy(total: Array, noise: Array, std: float) -> Array:
  """The noisy sum, without the low digits that would tell what the noise was added to."""
  if not std:
    return total + noise
  step = grid(std)
  return jnp.round((total + noise) / step) * step
