"""Local training: clients of a cohort train in one compiled program over one frozen copy."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int

from afspl_jax.config.experiment import Experiment
from afspl_jax.data.batches import Split
from afspl_jax.federation.client.client_store import ClientStore
from afspl_jax.federation.client.round_metrics import round_metrics
from afspl_jax.federation.contracts import POISSON, Update, attempt
from afspl_jax.federation.privacy.dp_sgd_batches import PoissonBatches, stacked
from afspl_jax.federation.protocol import uplink
from afspl_jax.models.prompter.local import (
  LOCAL,
  join_local,
  local_patterns,
  split_like,
  split_local,
)
from afspl_jax.models.prompter.site_prompts import fixed_leaves
from afspl_jax.storage.pytrees import zeros_like
from afspl_jax.training.mesh import replicate
from afspl_jax.training.train_step import StepMetrics
from afspl_jax.types import Batch, Params


class _Task(NamedTuple):
  """The task of a cohort; equal for all of its clients."""

  shared: Params  # the global params
  round: int
  first_step: int  # where the schedule stands
  control: Params  # the server's; zeros without controls
  near: (
    Params  # shared leaves that the penalty is for, if they are not those that training begins from
  )


class _Start(NamedTuple):
  """The state and the data with which a client starts a round."""

  state: Params  # from its earlier rounds
  batches: Batch | None  # of its local steps; None with DP-SGD, which draws those of a cohort


class _Trained(NamedTuple):
  """The result of a client's local training."""

  params: Params  # all leaves
  metrics: StepMetrics  # [k ...]
  gradient: Params | None = None  # of the shared leaves, mean over the finite steps; for controls


class LocalTrainer:
  """Trains any client of this process on its own part of the training split.

  Args:
    program: runs a cohort's local steps of a round (`make_local_training`, or with DP-SGD
      `make_private_training`).
    initial_prompt: makes a new client's first local prompt (`make_initial_prompt`).
    frozen: T5's leaves, replicated over the mesh.
    untrained: all leaves of the prompter before the first round (NumPy).
    data: the training split.
    clients: indices of each client's examples, by its name.
    config: of the experiment.
    controlled: whether the strategy corrects gradients (strategies.Controlled).
    mesh: devices that share a batch.
    store: keeps the clients' local state.
    in_process: whether all clients of a round train in this process, in one call. Where their
      number is left to chance, cohorts are then filled up to one size: one compiled program serves
      every round.
  """

  def __init__(
    self,
    program: Callable[..., tuple[Any, ...]],
    initial_prompt: Callable[[Params, Batch], Array],
    frozen: Params,
    untrained: Params,
    data: Split,
    clients: Mapping[str, Int[np.ndarray, " examples"]],
    config: Experiment,
    controlled: bool,
    mesh: Mesh,
    store: ClientStore,
    in_process: bool = True,
  ):
    self.program, self._initial_prompt = program, initial_prompt
    self._controlled, self._in_process = controlled, in_process
    self._frozen, self._data, self._mesh, self._store = frozen, data, mesh, store
    self._names = sorted(clients)
    self._clients, self._config = clients, config
    shared, self._local = split_local(untrained, local_patterns(config.fed))
    self._zeros = zeros_like(shared)
    self._feedback = config.uplink.select != "dense" and config.uplink.error_feedback != "none"
    self._template = {"own": self._local}
    if self._feedback:
      self._template["residual"] = self._zeros
    if controlled:
      self._template["control"] = self._zeros
    self.private_batches: PoissonBatches | None = None
    if config.privacy.example_clip:
      self.private_batches = PoissonBatches(config, data, clients, store.folder)

  def site(self, client: int) -> str:
    """The client's name."""
    return self._names[client]

  def num_examples(self, client: int) -> int:
    """Examples that the client trains on."""
    return len(self._clients[self._names[client]])

  def personal(self, shared: Params, client: int, round: int) -> Params:
    """The client's personalised prompter after a round: shared and local leaves.

    The local prompt of a client that has not trained yet is the mean of the pool prompts that its
    examples match; with DP-SGD it is the untrained one.
    """
    return join_local(shared, self._state(shared, client, round + 1)["own"])

  def newest_round(self, client: int) -> int | None:
    """The newest round of which there is a state of the client."""
    return self._store.newest(self._names[client])

  def saved(self, client: int, round: int) -> Params | None:
    """The local leaves of a client after a round, if it has trained or got any by then."""
    state = self._store.load(self._names[client], round + 1, self._template)
    return None if state is None else state["own"]

  def set_state(self, client: int, round: int, own: Params) -> None:
    """Sets the local leaves of a client after a round, without a residual."""
    self._store.save(self._names[client], round, self._template | {"own": own})

  def train_cohort(
    self,
    shared: Params,
    clients: Sequence[int],
    round: int,
    first_step: int | None = None,
    *,
    control: Params | None = None,
    near: Params | None = None,
  ) -> dict[int, Update | Exception]:
    """Runs the local steps of one round of some clients, in cohorts of up to `fed.cohort`.

    The state of a client is on disk when its result is returned; nothing is kept of one that fails.

    Args:
      shared: the global params (NumPy leaves).
      clients: their indices.
      round: from 1.
      first_step: where the schedule stands; by default where the round does.
      control: the server's, if the strategy has controls; by default zeros.
      near: what the penalty holds params near to; by default that from which training begins.

    Returns:
      Each client's result, or its error: FloatingPointError if no step had a finite loss and
      gradient.
    """
    steps = self._config.optim.local_steps
    first_step = (round - 1) * steps if first_step is None else first_step
    task = _Task(shared, round, first_step, self._zeros if control is None else control, near or {})
    cohorts, size = self._cut(clients)
    results: dict[int, Update | Exception] = {}
    for cohort in cohorts:
      results |= self._train_together(cohort, size, task)
    return results

  def _cut(self, clients: Sequence[int]) -> tuple[list[list[int]], int]:
    """Cuts clients into as few and as even cohorts as can be; also the size to fill each up to."""
    fed = self._config.fed
    number = max(1, -(-len(clients) // fed.cohort))
    cohorts = [part.tolist() for part in np.array_split(clients, number)]
    by_chance = self._in_process and fed.selection == POISSON
    return cohorts, min(fed.cohort, len(self._names)) if by_chance else len(cohorts[0])

  def _train_together(
    self, clients: Sequence[int], size: int, task: _Task
  ) -> dict[int, Update | Exception]:
    """Trains one cohort in one run of the compiled program."""
    found = {client: attempt(self._start, client, task) for client in clients}
    starts = {client: each for client, each in found.items() if isinstance(each, _Start)}
    results: dict[int, Update | Exception] = {
      client: each for client, each in found.items() if isinstance(each, Exception)
    }
    if starts:
      trained = attempt(self._run, starts, size, task)
      for client in starts:
        if isinstance(trained, Exception):
          results[client] = trained
        else:
          each = trained.pop(client)
          results[client] = attempt(self._finish, client, starts[client].state, each, task)
    return results

  def _start(self, client: int, task: _Task) -> _Start:
    if self.private_batches:
      self.private_batches.afford(self._names[client])
    state = self._state(task.shared, client, task.round)
    return _Start(state, None if self.private_batches else self._batches(client, task.round))

  def _run(self, starts: Mapping[int, _Start], size: int, task: _Task) -> dict[int, _Trained]:
    """Runs the compiled program; a cohort below `size` is filled up with copies of a client."""
    names = [*starts, *[next(iter(starts))] * (size - len(starts))]
    states = [starts[name].state for name in names]
    shared, local = task.shared, [state["own"] for state in states]
    residuals = [state.get("residual", self._zeros) for state in states]
    begun = [uplink.start_params(shared, residual, self._config.uplink) for residual in residuals]
    if self.private_batches:
      sites = [self._names[name] for name in names]
      batches, *more = self.private_batches.sample_batches(sites, join_local(shared, self._local))
    else:
      batches, more = stacked([starts[name].batches for name in names], axis=1), []
    if self._controlled:
      away = [jax.tree.map(np.subtract, task.control, state["control"]) for state in states]
      more = [stacked(away)]
    trained = self.program(
      replicate(
        stacked([join_local(*each) for each in zip(begun, local, strict=True)]), self._mesh
      ),
      self._frozen,
      stacked([join_local(join_local(shared, each), task.near) for each in local]),
      batches,
      jnp.asarray(task.first_step, jnp.int32),
      *more,
    )
    params, metrics, *gradients = jax.device_get(trained)
    return {
      name: _Trained(
        jax.tree.map(lambda leaf, i=i: leaf[i], params),
        jax.tree.map(lambda leaf, i=i: leaf[:, i], metrics),
        *jax.tree.map(lambda leaf, i=i: leaf[i], gradients),
      )
      for i, name in enumerate(starts)
    }

  def _finish(self, client: int, before: Params, trained: _Trained, task: _Task) -> Update:
    """Stores the client's state, and returns its update.

    Raises:
      FloatingPointError: no step had a finite loss and gradient.
    """
    site, metrics, gradient = self._names[client], trained.metrics, trained.gradient
    if not np.asarray(metrics.finite).any():
      raise FloatingPointError(
        f"none of {len(metrics.finite)} local steps had a finite loss and gradient; lower"
        " optim.prompt_lr and optim.mapper_lr, or look for bad examples"
      )
    shared, local = split_like(trained.params, task.shared)
    residual = before.get("residual", self._zeros)
    draw_key = self._config.seed, task.round
    fixed, rule = fixed_leaves(shared), self._config.uplink
    sent = uplink.compress(shared, task.shared, residual, rule, draw_key, fixed)
    keep = {"own": local, "residual": sent.residual, "control": gradient}
    if self.private_batches:
      self.private_batches.charge(site)
    self._store.save(site, task.round, {name: keep[name] for name in self._template})
    return Update(
      site,
      sent.params,
      sent.masks,
      self.num_examples(client),
      {} if self.private_batches else round_metrics(metrics),  # metrics have no noise
      jax.tree.map(np.subtract, gradient, before["control"]) if self._controlled else None,
    )

  def _batches(self, client: int, round: int) -> Batch:
    """The client's batches of a round; they depend only on its data and the seed."""
    optim = self._config.optim
    rng = np.random.default_rng((self._config.seed, round, client))
    personal = 1.0 - self._config.prompter.local_drop
    indices = self._clients[self._names[client]]
    return self._data.local_batches(indices, optim.local_steps, optim.batch_size, rng, personal)

  def _state(self, shared: Params, client: int, before: int) -> Params:
    """The client's newest state of a round below `before`; for a new client, its first one."""
    site = self._names[client]
    state = self._store.load(site, before, self._template)
    if state is not None or self.private_batches or "prompt" not in self._local.get(LOCAL, {}):
      return state or self._template
    rows = self._clients[site]
    size = self._config.eval.batch_size
    batch = self._data.batch(rows[:: -(-len(rows) // size)], size)
    prompt = np.asarray(self._initial_prompt(join_local(shared, self._local), batch))
    local = self._local | {LOCAL: self._local[LOCAL] | {"prompt": prompt}}
    return self._template | {"own": local}
