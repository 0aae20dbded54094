"""DP-SGD: local steps with a bound on the weight of every example, and noise.

Abadi et al. 2016, algorithm 1. Rows meet only in the sum of their gradients; an example's gradient
is that of its own token mean. The gradient for an example's prefix, from the language model's
backward pass, determines its gradient for the prompter. So the language model sees the rows of all
clients as one batch, as in the ordinary step, and only the pass through the prompter runs example
by example, a few at a time. Compared with the ordinary step of as many rows it takes 1.06 times as
long and no more memory; `jax_privacy.clipped_grad`, which maps the whole loss over examples, takes
1.7 times as long and six times the memory (10 clients of 16 rows, the tiny pair, two cores).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from afspl_jax.config.experiment import Optim, Privacy
from afspl_jax.federation.contracts import StepNoise
from afspl_jax.federation.privacy.noise import coarse_step
from afspl_jax.models.captioner import Captioner, soft_prefix
from afspl_jax.training.chunked_loss import ChunkedLoss
from afspl_jax.training.cohort_rows import merge_clients, split_clients
from afspl_jax.training.mesh import check_divides, replicated, row_sharded
from afspl_jax.training.optimizer import make_optimizer, make_schedule
from afspl_jax.training.train_step import Penalty, StepMetrics, TrainState, apply_gradient
from afspl_jax.types import Batch, Params

_FLOATS = 2**24  # of examples' gradients in memory at a time

# Float32 rounds norms and products, so examples are clipped to a bound smaller by this share.
_MARGIN = 1e-5


def make_private_training(
  captioner: Captioner,
  optim: Optim,
  privacy: Privacy,
  rounds: int,
  penalty: Penalty,
  mesh: Mesh,
) -> Callable[..., tuple[Params, StepMetrics]]:
  """Compiles a cohort's local training with DP-SGD in one round.

  The program takes the arguments of `make_local_training`'s program, and `StepNoise` last.
  Batches have any number of rows that the devices divide; they hold the sampled examples, and rows
  that do not count. The noise, and the division by the expected size, which reveals nothing about
  the sample, are in the gradient that Adam sees. So everything after a step follows from what is
  already private. The measurements of the steps (StepMetrics) are not private and must not leave a
  client.

  Args:
    captioner: the forward passes.
    optim: of the optimisation.
    privacy: the bound and the noise.
    rounds: rounds of the run, for the schedule.
    penalty: the strategy's addition to the loss.
    mesh: devices that share the rows.

  Raises:
    UserError: batches that cannot be split evenly over the devices.
  """
  check_divides(optim.batch_size, mesh, "optim.batch_size")
  train_step = PrivateTrainStep(captioner, optim, privacy, rounds, penalty, mesh)
  everywhere, rows = replicated(mesh), row_sharded(mesh, axis=2)
  return jax.jit(
    functools.partial(_training, train_step, make_optimizer(optim)),
    in_shardings=(everywhere, everywhere, everywhere, rows, everywhere, everywhere),
    out_shardings=everywhere,
    donate_argnums=0,
  )


class PrivateTrainStep:
  """One DP-SGD step of every client in a cohort; arguments as `make_private_training`."""

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
    self._step = coarse_step(privacy.example_clip * privacy.example_noise)
    self._optimizer, self._schedule = make_optimizer(optim), make_schedule(optim, rounds)
    self._chunked_loss = ChunkedLoss(captioner, optim.label_smoothing, mesh, optim.target_cuts)

  def __call__(
    self,
    state: TrainState,
    frozen: Params,
    global_params: Params,
    batch: Batch,
    noise: Params,
    expected: Float[Array, " c"],
  ) -> tuple[TrainState, StepMetrics]:
    """Takes the step; returns the new state and the measurements."""
    merged, clients = merge_clients(batch), len(batch.targets)
    prompted = jax.vmap(self._captioner.prompt)(state.params, batch)
    tokens = jnp.maximum(jnp.sum(merged.targets_mask, axis=1, dtype=jnp.float32), 1.0)

    def total(prefix: Array) -> tuple[Array, Array]:
      costs, nats = self._chunked_loss(frozen, prefix, merged, 1 / tokens)
      return costs.sum(), nats

    prefix = merge_clients(jax.vmap(soft_prefix)(prompted))
    pull, nats = jax.grad(total, has_aux=True)(prefix)
    pull = split_clients(pull, clients)
    bound = self._clip, self._step
    sums = clipped_sums(self._captioner, *bound, state.params, batch, pull, self._mesh)
    noisy = jax.tree.map(lambda sums, noise: (sums + noise) * jnp.float32(self._step), sums, noise)
    means = jax.vmap(lambda sums, size: jax.tree.map(lambda x: x / size, sums))(noisy, expected)
    penalties = jax.vmap(jax.grad(self._penalty))(state.params, global_params)
    grads = jax.tree.map(jnp.add, means, penalties)
    update = functools.partial(apply_gradient, self._optimizer, self._schedule(state.step))
    zeros = jnp.zeros(clients)  # the objective, which DP-SGD does not look at
    updated = jax.vmap(update)(zeros, grads, state.params, state.opt_state)
    params, opt_state, _, norm, finite = updated
    rows = batch.targets_mask.any(axis=-1).astype(jnp.float32)
    number = jnp.maximum(rows.sum(axis=1), 1.0)
    loss = split_clients(nats / tokens, clients).sum(axis=1) / number
    chosen = (prompted.pool.weights > 0).astype(jnp.float32)
    usage = jnp.einsum("cb,cbm->cm", rows, chosen) / number[:, None]
    metrics = StepMetrics(loss, zeros, zeros, norm, finite, usage)
    return TrainState(params, opt_state, state.step + 1), metrics


def _training(
  train_step: PrivateTrainStep,
  optimizer: optax.GradientTransformation,
  params: Params,
  frozen: Params,
  global_params: Params,
  batches: Batch,
  first_step: Int[Array, ""],
  private: StepNoise,
) -> tuple[Params, StepMetrics]:
  def step(state: TrainState, inputs: tuple[Batch, Params]) -> tuple[TrainState, StepMetrics]:
    return train_step(state, frozen, global_params, *inputs, private.expected)

  start = TrainState(params, jax.vmap(optimizer.init)(params), first_step)
  state, metrics = jax.lax.scan(step, start, (batches, private.noise))
  return state.params, metrics


def clipped_sums(
  captioner: Captioner,
  clip: float,
  step: float,
  params: Params,
  batch: Batch,
  pull: Float[Array, "c b x d"],
  mesh: Mesh,
) -> Params:
  """Sums each client's example gradients, each clipped to `clip`, for shared and local leaves.

  Each gradient is rounded towards 0 to whole steps, which makes it no longer, and these are summed
  without further rounding. So an example moves a sum by at most `clip`, exactly. An example whose
  gradient is not finite adds nothing.

  Args:
    captioner: the forward passes.
    clip: the largest L2 norm of an example's gradient.
    step: of the sums' grid.
    params: of each client.
    batch: of each client; its targets are not used.
    pull: the gradient of each example's loss for its prefix.
    mesh: devices that share the rows.

  Returns:
    int32 leaves `[c ...]`, in steps.
  """
  clients, rows = pull.shape[:2]
  size = _rows_at_once(rows, sum(leaf.size for leaf in jax.tree.leaves(params)), mesh.size)
  sharding = row_sharded(mesh, axis=2)
  clipped_sum = jax.vmap(functools.partial(_clipped_sum, captioner, clip, step))

  def chunked(x: Array) -> Array:
    chunks = x.reshape(clients, rows // size, size, *x.shape[2:]).swapaxes(0, 1)
    return jax.lax.with_sharding_constraint(chunks, sharding)

  def add(total: Params, chunk: tuple[Batch, Array]) -> tuple[Params, None]:
    return jax.tree.map(jnp.add, total, clipped_sum(params, chunk)), None

  zeros = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, jnp.int32), params)
  return jax.lax.scan(add, zeros, jax.tree.map(chunked, (batch, pull)))[0]


def _clipped_sum(
  captioner: Captioner, clip: float, step: float, params: Params, examples: tuple[Batch, Array]
) -> Params:
  """The sum of one client's clipped gradients in whole steps.

  `examples` come with the gradients for prefixes.
  """
  gradient = functools.partial(_example_gradient, captioner)
  grads = jax.vmap(gradient, in_axes=(None, 0, 0))(params, *examples)
  norms = jax.vmap(optax.tree.norm)(grads)
  scales = jnp.minimum(1.0, clip * (1 - _MARGIN) / jnp.maximum(norms, 1e-30))

  def sum_leaf(grads: Array) -> Array:
    across = (-1, *[1] * (grads.ndim - 1))
    counts = jnp.isfinite(norms).reshape(across)
    clipped = jnp.where(counts, scales.reshape(across) * grads, 0.0)
    return jnp.sum(jnp.trunc(clipped / step).astype(jnp.int32), axis=0, dtype=jnp.int32)

  return jax.tree.map(sum_leaf, grads)


def _example_gradient(captioner: Captioner, params: Params, example: Batch, pull: Array) -> Params:
  alone = jax.tree.map(lambda x: x[None], example)
  _, backward = jax.vjp(lambda params: soft_prefix(captioner.prompt(params, alone)), params)
  return backward(pull[None])[0]


def _rows_at_once(rows: int, floats: int, devices: int) -> int:
  """The largest divisor of `rows` for which the gradients of so many rows fit in memory."""
  fit = max(_FLOATS // floats, 1)
  whole = (n for n in range(devices, rows + 1, devices) if rows % n == 0)
  return max((n for n in whole if n <= fit), default=devices)
