"""Local training of simulated clients: cohorts in one compiled program, one frozen copy for all."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from afspl_jax.config.experiment import Experiment
from afspl_jax.data.batches import Split
from afspl_jax.errors import UserError
from afspl_jax.federation.client.client_store import ClientStore
from afspl_jax.federation.contracts import POISSON, LocalResult
from afspl_jax.federation.privacy.dp_sgd_batches import SecretBatches, stacked
from afspl_jax.federation.privacy.dp_sgd_step import make_private_training
from afspl_jax.federation.protocol import uplink
from afspl_jax.federation.strategies import Controlled, Strategy
from afspl_jax.models.captioner import Captioner
from afspl_jax.models.prompter.local import LOCAL, join, split
from afspl_jax.training.train_step import StepMetrics, make_local_training, make_matching, replicate
from afspl_jax.types import Batch, Params


class _Trained(NamedTuple):
  """What local training made of a client, until it asks for it."""

  before: Params  # its state
  params: Params  # all leaves
  metrics: StepMetrics  # [k ...]
  gradient: Params | None = None  # of the shared leaves, mean over the finite steps; for controls


class LocalTrainer:
  """Trains any client of this process on its own part of the training split.

  Clients ask one at a time, each with the params that it received. Those that `expect` announced
  train together when the first of them asks; each gets its own result when it asks itself, and
  only then is its state written, or its failure raised. What was trained for another round or
  from other params is thrown away. A client that was not announced trains alone.

  Args:
    captioner: the forward passes.
    frozen: T5's leaves, replicated over the mesh.
    untrained: all of the prompter's leaves before the first round (NumPy).
    data: the training split.
    clients: indices of each client's examples, by its name.
    config: of the experiment.
    strategy: its client half adds to the local loss, and may correct gradients.
    mesh: devices that share a batch.
    store: keeps what never leaves the clients.
  """

  def __init__(
    self,
    captioner: Captioner,
    frozen: Params,
    untrained: Params,
    data: Split,
    clients: Mapping[str, Int[np.ndarray, " examples"]],
    config: Experiment,
    strategy: Strategy,
    mesh: Mesh,
    store: ClientStore,
  ):
    self._frozen, self._data, self._mesh, self._store = frozen, data, mesh, store
    self._names = sorted(clients)
    self._clients, self._config = clients, config
    shared, self._own = split(untrained, config.fed.share)
    self._zeros = uplink.no_residual(shared)
    self._feedback = config.uplink.select != "dense" and config.uplink.error_feedback != "none"
    self._template = {"own": self._own}
    if self._feedback:
      self._template["residual"] = self._zeros
    self._controlled = isinstance(strategy, Controlled)
    if self._controlled:
      self._template["control"] = self._zeros
    self._matching = make_matching(captioner, mesh)
    self.secret: SecretBatches | None = None
    rounds, penalty = config.fed.rounds, strategy.client_penalty
    if config.privacy.example_clip:
      self.secret = SecretBatches(config, data, clients, store.folder)
      self.program = make_private_training(
        captioner, config.optim, config.privacy, rounds, penalty, mesh
      )
    else:
      self.program = make_local_training(
        captioner, config.optim, rounds, penalty, mesh, self._controlled
      )
    self._cohorts: dict[int, Sequence[int]] = {}  # that have yet to train, by each of their clients
    self._cohort_size = 1
    self._asked: tuple[Params, int, int, Params] = ({}, 0, 0, {})
    self._trained: dict[int, _Trained] = {}  # for `_asked`, and not yet fetched

  def expect(self, clients: Sequence[int]) -> None:
    """Tells which clients will be asked to train next, from equal params.

    They are cut into as few cohorts as `fed.cohort` allows, and these as even as can be, since a
    smaller one is filled up with copies. Where coins say how many clients a round has, all cohorts
    are of one size, or each number would be compiled anew.
    """
    fed = self._config.fed
    number = max(1, -(-len(clients) // fed.cohort))
    cohorts = [part.tolist() for part in np.array_split(clients, number)]
    coins = fed.selection == POISSON
    self._cohort_size = min(fed.cohort, len(self._names)) if coins else len(cohorts[0])
    self._cohorts = {client: cohort for cohort in cohorts for client in cohort}
    self._trained = {}

  def site(self, client: int) -> str:
    """The client's name."""
    return self._names[client]

  def num_examples(self, client: int) -> int:
    """Examples that the client trains on."""
    return len(self._clients[self._names[client]])

  def personal(self, shared: Params, client: int, round: int) -> Params:
    """The client's whole prompter after a round: the shared leaves with its own.

    The own prompt of a client that has not trained yet is what its examples match in the pool, with
    DP-SGD the untrained one.
    """
    return join(shared, self._state(shared, client, round + 1)["own"])

  def train(
    self,
    shared: Params,
    client: int,
    round: int,
    first_step: int | None = None,
    *,
    control: Params | None = None,
  ) -> LocalResult:
    """Runs the client's local steps of one round.

    Args:
      shared: the global params (NumPy leaves).
      client: its index.
      round: from 1.
      first_step: where the schedule stands; by default where the round does.
      control: the server's, if the strategy has controls; by default zeros.

    Raises:
      FloatingPointError: no step had a finite loss and gradient.
    """
    site, steps = self._names[client], self._config.optim.local_steps
    first_step = (round - 1) * steps if first_step is None else first_step
    asked = (shared, round, first_step, self._zeros if control is None else control)
    if not (self._trained and jax.tree.all(jax.tree.map(np.array_equal, self._asked, asked))):
      self._asked, self._trained = asked, {}
    if client not in self._trained:
      self._trained |= self._train_cohort(client, *asked)
    before, params, metrics, gradient = self._trained.pop(client)
    finite = np.asarray(metrics.finite)
    if not finite.any():
      raise FloatingPointError(
        f"none of {steps} local steps had a finite loss and gradient; lower optim.prompt_lr and"
        " optim.mapper_lr, or look for bad examples"
      )
    trained_shared, own = split(params, self._config.fed.share)
    residual = before.get("residual", self._zeros)
    lot = self._config.seed, round
    sent = uplink.compress(trained_shared, shared, residual, self._config.uplink, lot)
    keep = {"own": own, "residual": sent.residual, "control": gradient}
    if self.secret:
      self.secret.charge(site)
    self._store.save(site, round, {name: keep[name] for name in self._template})
    if self.secret:  # metrics are of the examples, without noise
      return LocalResult(sent.params, len(self._clients[site]), {}, sent.masks)
    usage = np.mean(metrics.usage[finite], axis=0)
    # Before any step was taken: what q-FedAvg weighs a site by, estimated on one batch.
    first_loss = {"first_loss": float(metrics.loss[0])} if finite[0] else {}
    return LocalResult(
      sent.params,
      len(self._clients[site]),
      {
        "loss": float(np.mean(metrics.loss[finite])),
        "balance": float(np.mean(metrics.balance[finite])),
        "contrast": float(np.mean(metrics.contrast[finite])),
        "grad_norm": float(np.mean(metrics.grad_norm[finite])),
        "prompts_chosen": float(usage.sum()),
        "nonfinite_steps": float(steps - finite.sum()),
      }
      | first_loss
      | {f"pool_usage_{i}": float(share) for i, share in enumerate(usage)},
      sent.masks,
      jax.tree.map(np.subtract, gradient, before["control"]) if self._controlled else None,
    )

  def _train_cohort(
    self, client: int, shared: Params, round: int, first_step: int, control: Params
  ) -> dict[int, _Trained]:
    """Trains the client and those of its cohort that can start; one that cannot fails alone."""
    cohort = self._cohorts.pop(client, None)
    size = 1 if cohort is None else self._cohort_size
    states = {client: self._state(shared, client, round)}
    for other in cohort or ():
      if other in self._cohorts:  # else it failed before
        with contextlib.suppress(UserError):  # which it will meet again when it asks itself
          states[other] = self._state(shared, other, round)
          del self._cohorts[other]  # a second time, it trains alone
    # What fills a cohort up are copies of a real client: one compile serves every number.
    names = [*states, *[client] * (size - len(states))]
    own = [states[name]["own"] for name in names]
    residuals = [states[name].get("residual", self._zeros) for name in names]
    starts = [uplink.begin(shared, residual, self._config.uplink) for residual in residuals]
    if self.secret:
      sites = [self._names[name] for name in names]
      batches, *more = self.secret.draw(sites, join(shared, self._own))
    else:
      batches, more = stacked([self._batches(name, round) for name in names], axis=1), []
    if self._controlled:
      away = [jax.tree.map(np.subtract, control, states[name]["control"]) for name in names]
      more = [stacked(away)]
    trained = self.program(
      replicate(stacked([join(*each) for each in zip(starts, own, strict=True)]), self._mesh),
      self._frozen,
      stacked([join(shared, each) for each in own]),
      batches,
      jnp.asarray(first_step, jnp.int32),
      *more,
    )
    params, metrics, *gradients = jax.device_get(trained)
    return {
      name: _Trained(
        states[name],
        jax.tree.map(lambda leaf, i=i: leaf[i], params),
        jax.tree.map(lambda leaf, i=i: leaf[:, i], metrics),
        *jax.tree.map(lambda leaf, i=i: leaf[i], gradients),
      )
      for i, name in enumerate(states)
    }

  def _batches(self, client: int, round: int) -> Batch:
    """The client's batches of a round, which depend on nothing but its data and the seed."""
    optim = self._config.optim
    rng = np.random.default_rng((self._config.seed, round, client))
    personal = 1.0 - self._config.prompter.local_drop
    indices = self._clients[self._names[client]]
    return self._data.local_batches(indices, optim.local_steps, optim.batch_size, rng, personal)

  def _state(self, shared: Params, client: int, before: int) -> Params:
    """What the client knows, or what a new one starts from."""
    site = self._names[client]
    state = self._store.load(site, before, self._template)
    if state is not None or self.secret or "prompt" not in self._own.get(LOCAL, {}):
      return state or self._template
    rows = self._clients[site]
    size = self._config.eval.batch_size
    batch = self._data.batch(rows[:: -(-len(rows) // size)], size)
    prompt = np.asarray(self._matching(join(shared, self._own), batch))
    own = self._own | {LOCAL: self._own[LOCAL] | {"prompt": prompt}}
    return self._template | {"own": own}
