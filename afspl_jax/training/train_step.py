"""The training and evaluation steps: pure, jitted, data-parallel over the mesh.

What `jax.pmap` did, and is itself now made of: `jit` with the batch sharded over the mesh's `data`
axis and everything else replicated. Sums over the batch are global, so the numbers do not depend
on how many devices there are.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from afspl_jax.config.experiment import Optim
from afspl_jax.errors import UserError
from afspl_jax.models.captioner import Captioner, prefix
from afspl_jax.models.prompter.pool import balance_loss
from afspl_jax.models.prompter.prompter import Prompted
from afspl_jax.training.chunked_t5_loss import RowLoss
from afspl_jax.training.control_variates import Control, begin, correct, mean_gradient
from afspl_jax.training.losses import TokenLoss, contrastive, token_cross_entropy
from afspl_jax.types import Batch, Params

# A strategy's addition to the local loss, of (params, the round's global params).
Penalty = Callable[[Params, Params], Float[Array, ""]]


class TrainState(NamedTuple):
  """What a local step changes; all leaves but `step` have a leading axis of clients."""

  params: Params
  opt_state: Any
  step: Int[Array, ""]  # local steps since round 1, for the schedule
  control: Control | None = None  # with a strategy that corrects gradients


class StepMetrics(NamedTuple):
  """What a local step tells of each client; the leading axes are `c`, after a scan `k c`."""

  loss: Float[Array, "*k"]  # cross-entropy, nats a token
  balance: Float[Array, "*k"]
  contrast: Float[Array, "*k"]  # 0 without a contrastive loss
  grad_norm: Float[Array, "*k"]  # before clipping, after any correction
  finite: Bool[Array, "*k"]  # False: loss or gradient was not, and the step changed nothing
  usage: Float[Array, "*k m"]  # share of rows that chose each prompt; its sum is the mean k


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
  """All local devices, or those given, on one `data` axis."""
  devices = devices or jax.local_devices()
  auto = (jax.sharding.AxisType.Auto,)
  return jax.make_mesh((len(devices),), ("data",), axis_types=auto, devices=devices)


def make_optimizer(config: Optim) -> optax.GradientTransformation:
  """Adam, with a learning rate for each of GROUPS."""
  rates = {
    "local": config.local_lr,
    "prompts": config.prompt_lr,
    "keys": config.key_lr,
    "fusion": config.fusion_lr,
    "mapper": config.mapper_lr,
  }

  def label(path: tuple[Any, ...], _: Any) -> str:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return next(group for group, prefixes in GROUPS.items() if name.startswith(prefixes))

  groups = {
    name: optax.adamw(rate, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay)
    for name, rate in rates.items()
  }
  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    optax.partition(groups, lambda params: jax.tree_util.tree_map_with_path(label, params)),
  )


# First match counts. Prompts and places are vectors in T5's embedding space, which move far.
GROUPS = {
  "local": ("local/prompt",),
  "prompts": ("pool/prompts", "visual_prompt", "textual_prompt", "mapper/place"),
  "keys": ("pool/",),
  "fusion": ("fusion/", "local/contrast"),
  "mapper": ("mapper/",),
}


def make_schedule(config: Optim, rounds: int) -> optax.Schedule:
  """The factor on every learning rate, by local steps since round 1."""
  steps, warmup = max(rounds, 1) * config.local_steps, warmup_steps(config, rounds)
  if config.schedule == "constant":
    return optax.schedules.linear_schedule(1 / (warmup + 1), 1.0, warmup)
  return optax.schedules.warmup_cosine_decay_schedule(
    1 / (warmup + 1), 1.0, warmup, steps, config.final_lr
  )


def warmup_steps(config: Optim, rounds: int) -> int:
  """Local steps until the learning rates are at their peak."""
  wanted = round(config.warmup_rounds * config.local_steps)
  return min(wanted, max(rounds, 1) * config.local_steps - 1)


def make_train_step(
  captioner: Captioner, config: Optim, rounds: int, penalty: Penalty, mesh: Mesh
) -> Callable[[TrainState, Params, Params, Batch], tuple[TrainState, StepMetrics]]:
  """Returns the pure `train_step(state, frozen, global_params, batch)` of a cohort.

  Params, Adam's moments and the batch have a leading axis `c` of clients, `frozen` is shared. The
  prompters run client by client, T5 sees the rows of all as one batch. A client's numbers are its
  own: clients meet only in the sum of their objectives, whose gradient for the params of one is
  that of its own objective, also where another's is not finite.
  """
  optimizer, schedule = make_optimizer(config), make_schedule(config, rounds)
  row_loss = RowLoss(captioner, config.label_smoothing, mesh, config.target_cuts)

  def train_step(
    state: TrainState, frozen: Params, global_params: Params, batch: Batch
  ) -> tuple[TrainState, StepMetrics]:
    factor = schedule(state.step)
    ramp = jnp.minimum((state.step + 1) / (config.contrast_warmup * config.local_steps), 1.0)
    merged, clients = merge_clients(batch), len(batch.targets)
    tokens = jnp.maximum(jnp.sum(batch.targets_mask, axis=(1, 2), dtype=jnp.float32), 1.0)
    weights = merge_clients(jnp.broadcast_to(1 / tokens[:, None], batch.personal.shape))

    def contrasts(params: Params, states: Float[Array, "c b d"]) -> Float[Array, " c"]:
      project = jax.vmap(captioner.project)(params, states)
      loss = functools.partial(contrastive, temperature=config.contrast_temperature)
      return jax.vmap(loss)(project, batch.caption)

    def of_prompter(params: Params, start: Params, batch: Batch, prompted: Prompted):
      rows = batch.targets_mask.any(axis=-1).astype(jnp.float32)
      pool = prompted.pool
      balance = balance_loss(pool, rows)
      usage = rows @ (pool.weights > 0).astype(jnp.float32) / jnp.maximum(rows.sum(), 1.0)
      return config.balance * balance + penalty(params, start), balance, usage

    def of_all(params: Params):
      prompted = jax.vmap(captioner.prompt)(params, batch)
      made = merge_clients(jax.vmap(prefix)(prompted))
      objectives, balance, usage = jax.vmap(of_prompter)(params, global_params, batch, prompted)
      contrast, pull = jnp.zeros(clients), None
      if config.contrast:
        # Its gradient for the encoder's states goes through T5 together with that of the tokens.
        states = split_clients(row_loss.states(frozen, made, merged), clients)
        contrast = contrasts(params, states)
        objectives += config.contrast * ramp * contrast
        total = lambda states: contrasts(jax.lax.stop_gradient(params), states).sum()  # noqa: E731
        pull = config.contrast * ramp * merge_clients(jax.grad(total)(states))
      costs, nats = row_loss(frozen, made, merged, weights, pull)
      objectives += split_clients(costs, clients).sum(axis=1)
      loss = split_clients(nats, clients).sum(axis=1) / tokens
      return objectives.sum(), (objectives, loss, balance, contrast, usage)

    grads, (objectives, *rest, usage) = jax.grad(of_all, has_aux=True)(state.params)
    loss, balance, contrast = rest
    move = functools.partial(take_step, optimizer, factor)
    moved = jax.vmap(move)(objectives, grads, state.params, state.opt_state, state.control)
    params, opt_state, control, norm, finite = moved
    metrics = StepMetrics(loss, balance, contrast, norm, finite, usage)
    return TrainState(params, opt_state, state.step + 1, control), metrics

  return train_step


def take_step(
  optimizer: optax.GradientTransformation,
  factor: Float[Array, ""] | float,
  objective: Float[Array, ""],
  raw: Params,
  params: Params,
  opt_state: Any,
  control: Control | None = None,
) -> tuple[Params, Any, Control | None, Float[Array, ""], Bool[Array, ""]]:
  """One client's step by a gradient: none at all where it or the objective is not finite.

  Returns:
    Params, optimizer state, control, the gradient's norm, and whether all was finite.
  """
  grads, new_control = correct(raw, control)
  norm = optax.tree.norm(grads)
  finite = jnp.isfinite(objective) & jnp.isfinite(norm)
  updates, new_opt_state = optimizer.update(grads, opt_state, params)
  new_params = jax.tree.map(lambda p, u: p + factor * u, params, updates)
  new, old = (new_params, new_opt_state, new_control), (params, opt_state, control)
  return *jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old), norm, finite


def merge_clients(tree: Any) -> Any:
  """`[c b ...]` to rows `[b*c ...]`: the sharded axis stays outermost, so nothing moves."""
  return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), tree)


def split_clients(rows: Array, clients: int) -> Array:
  """The inverse of `merge_clients`."""
  return rows.reshape(-1, clients, *rows.shape[1:]).swapaxes(0, 1)


def make_local_training(
  captioner: Captioner,
  config: Optim,
  rounds: int,
  penalty: Penalty,
  mesh: Mesh,
  controls: bool = False,
) -> Callable[..., tuple[Any, ...]]:
  """Compiles a cohort's round.

  It takes `(params, frozen, global_params, batches, first_step)` and gives `(params, metrics)`.
  Both params have a leading axis of clients, `batches` one of local steps, which run in one
  `lax.scan`, and then that of clients. Adam starts afresh each round, as a client may not have
  been selected before. `params` is donated. With `controls` it also takes what is added to the
  gradients of the shared leaves, and also gives the means of these gradients without it, over the
  finite steps; both last, and with a leading axis of clients.

  Raises:
    UserError: batches that cannot be split evenly over the devices.
  """
  check_divides(config.batch_size, mesh, "optim.batch_size")
  train_step = make_train_step(captioner, config, rounds, penalty, mesh)
  optimizer = make_optimizer(config)

  def local_training(
    params: Params,
    frozen: Params,
    global_params: Params,
    batches: Batch,
    first_step: Int[Array, ""],
    *correction: Params,
  ) -> tuple[Any, ...]:
    control = jax.vmap(begin)(*correction) if correction else None
    start = TrainState(params, jax.vmap(optimizer.init)(params), first_step, control)
    step = lambda state, batch: train_step(state, frozen, global_params, batch)  # noqa: E731
    state, metrics = jax.lax.scan(step, start, batches)
    means = () if state.control is None else (jax.vmap(mean_gradient)(state.control),)
    return state.params, metrics, *means

  everywhere = NamedSharding(mesh, PartitionSpec())
  rows = NamedSharding(mesh, PartitionSpec(None, None, "data"))
  return jax.jit(
    local_training,
    in_shardings=(everywhere, everywhere, everywhere, rows, *[everywhere] * (1 + controls)),
    out_shardings=everywhere,
    donate_argnums=0,
  )


def make_matching(captioner: Captioner, mesh: Mesh) -> Callable[[Params, Batch], Array]:
  """Compiles `(params, batch) -> prompt [p d]`: where a client's own prompt starts.

  The mean of what the keys match in the pool for the client's examples, without any training.
  """

  def matching(params: Params, batch: Batch) -> Float[Array, "p d"]:
    rows = batch.targets_mask.any(axis=-1).astype(jnp.float32)
    prompts = captioner.prompt(params, batch).pool.prompt
    return jnp.einsum("b,bpd->pd", rows, prompts) / jnp.maximum(rows.sum(), 1.0)

  everywhere = NamedSharding(mesh, PartitionSpec())
  rows = NamedSharding(mesh, PartitionSpec("data"))
  return jax.jit(matching, in_shardings=(everywhere, rows), out_shardings=everywhere)


def make_eval_step(
  captioner: Captioner, mesh: Mesh
) -> Callable[[Params, Params, Batch], TokenLoss]:
  """Compiles `(params, frozen, batch) -> TokenLoss`, without label smoothing."""

  def eval_step(params: Params, frozen: Params, batch: Batch) -> TokenLoss:
    encoded = captioner.encode(params, frozen, batch)
    logits = captioner.logits(frozen, encoded, batch.targets)
    return token_cross_entropy(logits, batch.targets, batch.targets_mask)

  everywhere = NamedSharding(mesh, PartitionSpec())
  rows = NamedSharding(mesh, PartitionSpec("data"))
  return jax.jit(eval_step, in_shardings=(everywhere, everywhere, rows), out_shardings=everywhere)


def replicate(tree: Params, mesh: Mesh) -> Params:
  """Puts a copy of every leaf on every device of the mesh."""
  return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def check_divides(size: int, mesh: Mesh, name: str) -> None:
  """Raises UserError unless `size` rows split evenly over the mesh's devices."""
  devices = int(np.prod(list(mesh.shape.values())))
  if size % devices:
    raise UserError(
      f"{name}: expected a multiple of the {devices} devices; got {size}."
      f" Use {devices * (1 + size // devices)}."
    )
