"""DP-SGD: local steps in which the gradient of each example is bounded, and noise is added.

Abadi et al. 2016, algorithm 1. The gradient of an example is that of its own mean over tokens; rows
meet only in the sum of their gradients. T5's backward pass gives, for the rows' prefixes, the
gradient up to the prompter. So T5 gets the rows of all clients as one batch, as in the ordinary
step, and only the way back through the prompter is taken example by example, a few at a time. With
as many rows it takes 1.06 times as long as the ordinary step and no more memory;
`jax_privacy.clipped_grad`, which maps the whole loss over examples, takes 1.7 times as long and six
times the memory (10 clients with 16 rows, the tiny pair, two cores).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from afspl_jax.config.experiment import Optim, Privacy
from afspl_jax.federation.contracts import StepNoise
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

_FLOATS = 2**24  # of examples' gradients in memory at a time

# Float32 rounds norms and sums, so examples are clipped to a bound that is smaller by this share.
_MARGIN = 1e-5


def make_private_training(
  captioner: Captioner,
  optim: Optim,
  privacy: Privacy,
  rounds: int,
  penalty: Penalty,
  mesh: Mesh,
) -> Callable[..., tuple[Params, StepMetrics]]:
  """Compiles a cohort's round of DP-SGD.

  The program takes what that of `train_step.make_local_training` takes, and `StepNoise` last.
  Batches have any number of rows that the devices divide: the sampled examples, and rows that do
  not count. The gradient that Adam gets has the noise, and is divided by the expected number of
  examples, which reveals nothing about the sample; so everything after a step depends only on what
  is private already. The metrics of the steps (StepMetrics) have no noise and must not be sent.

  Raises:
    UserError: batches that cannot be split evenly over the devices.
  """
  check_divides(optim.batch_size, mesh, "optim.batch_size")
  program = _PrivateTraining(captioner, optim, privacy, rounds, penalty, mesh)
  everywhere = NamedSharding(mesh, PartitionSpec())
  rows = NamedSharding(mesh, PartitionSpec(None, None, "data"))
  return jax.jit(
    program.run_round,
    in_shardings=(everywhere, everywhere, everywhere, rows, everywhere, everywhere),
    out_shardings=everywhere,
    donate_argnums=0,
  )


class _PrivateTraining:
  """The pure functions of `make_private_training`."""

  def __init__(
    self,
    captioner: Captioner,
    optim: Optim,
    privacy: Privacy,
    rounds: int,
    penalty: Penalty,
    mesh: Mesh,
  ):
    self._captioner, self._penalty, self._mesh = captioner, penalty, mesh
    self._clip = privacy.example_clip
    self._optimizer, self._schedule = make_optimizer(optim), make_schedule(optim, rounds)
    self._row_loss = RowLoss(captioner, optim.label_smoothing, mesh, optim.target_cuts)
    self._noisy = functools.partial(_noisy, std=privacy.example_clip * privacy.example_noise)

  def run_round(
    self,
    params: Params,
    frozen: Params,
    global_params: Params,
    batches: Batch,
    first_step: Int[Array, ""],
    noise: StepNoise,
  ) -> tuple[Params, StepMetrics]:
    """The local steps of a round."""

    def step(state: TrainState, inputs: tuple[Batch, Params]) -> tuple[TrainState, StepMetrics]:
      return self._step(state, frozen, global_params, *inputs, noise.expected)

    start = TrainState(params, jax.vmap(self._optimizer.init)(params), first_step)
    state, metrics = jax.lax.scan(step, start, (batches, noise.noise))
    return state.params, metrics

  def _step(
    self,
    state: TrainState,
    frozen: Params,
    start: Params,
    batch: Batch,
    noise: Params,
    expected: Array,
  ) -> tuple[TrainState, StepMetrics]:
    merged, clients = merge_clients(batch), len(batch.targets)
    prompted = jax.vmap(self._captioner.prompt)(state.params, batch)
    tokens = jnp.maximum(jnp.sum(merged.targets_mask, axis=1, dtype=jnp.float32), 1.0)

    def of_rows(made: Array) -> tuple[Array, Array]:
      costs, nats = self._row_loss(frozen, made, merged, 1 / tokens)
      return costs.sum(), nats

    pull, nats = jax.grad(of_rows, has_aux=True)(merge_clients(jax.vmap(prefix)(prompted)))
    sums = clipped_sums(
      self._captioner, self._clip, state.params, batch, split_clients(pull, clients), self._mesh
    )
    means = jax.vmap(lambda of, by: jax.tree.map(lambda x: x / by, of))(
      jax.tree.map(self._noisy, sums, noise), expected
    )
    pulls = jax.vmap(jax.grad(self._penalty))(state.params, start)
    grads = jax.tree.map(jnp.add, means, pulls)
    move = functools.partial(take_step, self._optimizer, self._schedule(state.step))
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


def clipped_sums(
  captioner: Captioner,
  clip: float,
  params: Params,
  batch: Batch,
  pull: Float[Array, "c b x d"],
  mesh: Mesh,
) -> Params:
  """Each client's sum of its examples' clipped gradients, for shared and local leaves.

  An example whose gradient is not finite adds nothing.

  Args:
    captioner: the forward passes.
    clip: the largest L2 norm of an example's gradient.
    params: of each client.
    batch: of each client; its targets are not used.
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
  """The largest divisor of `rows` with which the gradients fit into `_FLOATS`."""
  fit = max(_FLOATS // floats, 1)
  whole = (n for n in range(devices, rows + 1, devices) if rows % n == 0)
  return max((n for n in whole if n <= fit), default=devices)


def _noisy(total: Array, noise: Array, std: float) -> Array:
  """The noisy sum, without the low digits that could reveal the sum without noise."""
  if not std:
    return total + noise
  step = grid(std)
  return jnp.round((total + noise) / step) * step
