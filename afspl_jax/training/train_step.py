"""The training step of a cohort: pure, jitted, data-parallel over the mesh.

The batch is sharded over the mesh's `data` axis and everything else is replicated. Sums over the
batch are global, so the numbers do not depend on the number of devices.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from afspl_jax.config.experiment import Optim
from afspl_jax.models.captioner import Captioner, soft_prefix
from afspl_jax.models.prompter.pool import balance_loss
from afspl_jax.models.prompter.prompter import Prompted
from afspl_jax.training.chunked_loss import ChunkedLoss
from afspl_jax.training.cohort_rows import merge_clients, split_clients
from afspl_jax.training.control_variates import (
  Control,
  correct_gradients,
  mean_gradient,
  start_control,
)
from afspl_jax.training.losses import contrastive
from afspl_jax.training.mesh import check_divides, replicated, row_sharded
from afspl_jax.training.optimizer import make_optimizer, make_schedule
from afspl_jax.types import Batch, Params

# A strategy's addition to the local loss: a function of (params, the round's global params).
Penalty = Callable[[Params, Params], Float[Array, ""]]


class TrainState(NamedTuple):
  """The state of local training; all leaves but `step` have a leading axis of clients."""

  params: Params
  opt_state: Any
  step: Int[Array, ""]  # local steps since round 1, for the schedule
  control: Control | None = None  # with a strategy that corrects gradients


class StepMetrics(NamedTuple):
  """Measurements of a local step, for each client; leading axes are `c`, after a scan `k c`."""

  loss: Float[Array, "*k"]  # cross-entropy, nats a token
  balance: Float[Array, "*k"]
  contrast: Float[Array, "*k"]  # 0 without a contrastive loss
  grad_norm: Float[Array, "*k"]  # before clipping, after any correction
  finite: Bool[Array, "*k"]  # False: loss or gradient was not finite, and the step changed nothing
  usage: Float[Array, "*k m"]  # share of rows that chose each prompt; its sum is the mean k


class TrainStep:
  """One local step of every client in a cohort, as a pure function.

  Params, Adam's moments and the batch have a leading axis `c` of clients; `frozen` is shared. The
  prompters run client by client; the language model sees the rows of all clients as one batch.
  Clients do not affect each other: they meet only in the sum of their objectives, and the gradient
  of that sum for one client's params is the gradient of its own objective, even if another client's
  objective is not finite.

  Args:
    captioner: the forward passes.
    config: of the optimisation.
    rounds: rounds of the run, for the schedule.
    penalty: the strategy's addition to the loss.
    mesh: devices that share the rows.
    local: patterns of the local leaves, for `optim.local_only`.
  """

  def __init__(
    self,
    captioner: Captioner,
    config: Optim,
    rounds: int,
    penalty: Penalty,
    mesh: Mesh,
    local: Sequence[str] = (),
  ):
    self._captioner, self._config, self._penalty = captioner, config, penalty
    self._optimizer = make_optimizer(config, captioner.fixed_leaves, local)
    self._schedule = make_schedule(config, rounds)
    self._chunked_loss = ChunkedLoss(captioner, config.label_smoothing, mesh, config.target_cuts)

  def __call__(
    self, state: TrainState, frozen: Params, global_params: Params, batch: Batch
  ) -> tuple[TrainState, StepMetrics]:
    """Takes the step; returns the new state and the measurements."""
    config = self._config
    factor = self._schedule(state.step)
    ramp = jnp.minimum((state.step + 1) / (config.contrast_warmup * config.local_steps), 1.0)
    rows, clients = merge_clients(batch), len(batch.targets)
    tokens = jnp.maximum(jnp.sum(batch.targets_mask, axis=(1, 2), dtype=jnp.float32), 1.0)
    weights = merge_clients(jnp.broadcast_to(1 / tokens[:, None], batch.personal.shape))

    def total_objective(params: Params) -> tuple[Array, tuple[Array, ...]]:
      prompted = jax.vmap(self._captioner.prompt)(params, batch)
      prefix = merge_clients(jax.vmap(soft_prefix)(prompted))
      prompter_losses = jax.vmap(self._prompter_losses)
      objectives, balance, usage = prompter_losses(params, global_params, batch, prompted)
      contrast, pull = jnp.zeros(clients), None
      if config.contrast:
        # Its gradient for the summaries goes through the language model with that of the tokens.
        summaries = self._chunked_loss.summaries(frozen, prefix, rows)
        summaries = split_clients(summaries, clients)
        contrast = self._contrasts(params, summaries, batch.caption)
        objectives += config.contrast * ramp * contrast
        gradient = jax.grad(lambda *args: self._contrasts(*args).sum(), argnums=1)
        constant = jax.lax.stop_gradient(params)
        pull = config.contrast * ramp * merge_clients(gradient(constant, summaries, batch.caption))
      costs, nats = self._chunked_loss(frozen, prefix, rows, weights, pull)
      objectives += split_clients(costs, clients).sum(axis=1)
      loss = split_clients(nats, clients).sum(axis=1) / tokens
      return objectives.sum(), (objectives, loss, balance, contrast, usage)

    grads, values = jax.grad(total_objective, has_aux=True)(state.params)
    objectives, loss, balance, contrast, usage = values
    update = jax.vmap(functools.partial(apply_gradient, self._optimizer, factor))
    updated = update(objectives, grads, state.params, state.opt_state, state.control)
    params, opt_state, control, norm, finite = updated
    metrics = StepMetrics(loss, balance, contrast, norm, finite, usage)
    return TrainState(params, opt_state, state.step + 1, control), metrics

  def _prompter_losses(
    self, params: Params, global_params: Params, batch: Batch, prompted: Prompted
  ) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, " m"]]:
    """One client's objective without the tokens, its load balance, and its use of the pool."""
    rows = batch.targets_mask.any(axis=-1).astype(jnp.float32)
    pool = prompted.pool
    balance = balance_loss(pool, rows)
    usage = rows @ (pool.weights > 0).astype(jnp.float32) / jnp.maximum(rows.sum(), 1.0)
    objective = self._config.balance * balance + self._penalty(params, global_params)
    return objective, balance, usage

  def _contrasts(
    self, params: Params, summaries: Float[Array, "c b d"], captions: Float[Array, "c b f"]
  ) -> Float[Array, " c"]:
    """The contrastive loss of each client."""
    projected = jax.vmap(self._captioner.project)(params, summaries)
    loss = functools.partial(contrastive, temperature=self._config.contrast_temperature)
    return jax.vmap(loss)(projected, captions)


def apply_gradient(
  optimizer: optax.GradientTransformation,
  factor: Float[Array, ""] | float,
  objective: Float[Array, ""],
  grads: Params,
  params: Params,
  opt_state: Any,
  control: Control | None = None,
) -> tuple[Params, Any, Control | None, Float[Array, ""], Bool[Array, ""]]:
  """Moves one client's leaves by a gradient, unless it or the objective is not finite.

  Args:
    optimizer: from `make_optimizer`.
    factor: on every learning rate, from the schedule.
    objective: the client's objective.
    grads: its gradient for `params`.
    params: all leaves of the prompter.
    opt_state: the optimizer's state.
    control: the state of control variates, with a strategy that corrects gradients.

  Returns:
    Params, optimizer state, control, the gradient's norm, and whether the step was taken.
  """
  grads, new_control = correct_gradients(grads, control)
  norm = optax.tree.norm(grads)
  finite = jnp.isfinite(objective) & jnp.isfinite(norm)
  updates, new_opt_state = optimizer.update(grads, opt_state, params)
  new_params = jax.tree.map(lambda p, u: p + factor * u, params, updates)
  new, old = (new_params, new_opt_state, new_control), (params, opt_state, control)
  return *jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old), norm, finite


def make_local_training(
  captioner: Captioner,
  config: Optim,
  rounds: int,
  penalty: Penalty,
  mesh: Mesh,
  controls: bool = False,
  local: Sequence[str] = (),
) -> Callable[..., tuple[Any, ...]]:
  """Compiles a cohort's local training in one round.

  The program is `(params, frozen, global_params, batches, first_step) -> (params, metrics)`. Both
  params have a leading axis of clients. `batches` has a leading axis of local steps, which run in
  one `lax.scan`, then that of clients. Adam starts anew each round, because a client may not have
  been selected before. `params` is donated.

  With `controls` the program takes a sixth argument, the correction to add to the gradients of the
  shared leaves, and returns a third value, the mean of these gradients over the finite steps
  without the correction. Both have a leading axis of clients.

  Args:
    captioner: the forward passes.
    config: of the optimisation.
    rounds: rounds of the run, for the schedule.
    penalty: the strategy's addition to the loss.
    mesh: devices that share the rows.
    controls: whether gradients are corrected by control variates.
    local: patterns of the local leaves, for `optim.local_only`.

  Raises:
    UserError: batches that cannot be split evenly over the devices.
  """
  check_divides(config.batch_size, mesh, "optim.batch_size")
  train_step = TrainStep(captioner, config, rounds, penalty, mesh, local)
  optimizer = make_optimizer(config, captioner.fixed_leaves, local)
  local_training = functools.partial(_local_training, train_step, optimizer)
  everywhere, rows = replicated(mesh), row_sharded(mesh, axis=2)
  return jax.jit(
    local_training,
    in_shardings=(everywhere, everywhere, everywhere, rows, *[everywhere] * (1 + controls)),
    out_shardings=everywhere,
    donate_argnums=0,
  )


def _local_training(
  train_step: TrainStep,
  optimizer: optax.GradientTransformation,
  params: Params,
  frozen: Params,
  global_params: Params,
  batches: Batch,
  first_step: Int[Array, ""],
  *correction: Params,
) -> tuple[Any, ...]:
  control = jax.vmap(start_control)(*correction) if correction else None
  start = TrainState(params, jax.vmap(optimizer.init)(params), first_step, control)
  step = lambda state, batch: train_step(state, frozen, global_params, batch)  # noqa: E731
  state, metrics = jax.lax.scan(step, start, batches)
  means = () if state.control is None else (jax.vmap(mean_gradient)(state.control),)
  return state.params, metrics, *means
