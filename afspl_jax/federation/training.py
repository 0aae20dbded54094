"""Local training of simulated clients: one compiled program and one frozen copy for all."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from afspl_jax.captioner import Captioner
from afspl_jax.config import Experiment
from afspl_jax.data.batches import Split
from afspl_jax.federation import uplink
from afspl_jax.federation.client import LocalResult
from afspl_jax.federation.client_store import ClientStore
from afspl_jax.prompts.local import LOCAL, join, split
from afspl_jax.step import Penalty, make_local_training, make_matching, replicate
from afspl_jax.types import Params


class LocalTrainer:
  """Trains any client of this process on its own part of the training split.

  Args:
    captioner: the forward passes.
    frozen: T5's leaves, replicated over the mesh.
    untrained: all of the prompter's leaves before the first round (NumPy).
    data: the training split.
    clients: indices of each client's examples, by its name.
    config: of the experiment.
    penalty: the strategy's addition to the local loss.
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
    penalty: Penalty,
    mesh: Mesh,
    store: ClientStore,
  ):
    self._frozen, self._data, self._mesh, self._store = frozen, data, mesh, store
    self._names = sorted(clients)
    self._clients, self._config = clients, config
    shared, self._own = split(untrained, config.fed.share)
    self._no_residual = uplink.no_residual(shared)
    self._feedback = config.uplink.select != "dense" and config.uplink.error_feedback
    self._template = {"own": self._own}
    if self._feedback:
      self._template["residual"] = self._no_residual
    self._matching = make_matching(captioner, mesh)
    self.program = make_local_training(captioner, config.optim, config.fed.rounds, penalty, mesh)

  def site(self, client: int) -> str:
    """The client's name."""
    return self._names[client]

  def personal(self, shared: Params, client: int, round: int) -> Params:
    """The client's whole prompter after a round: the shared leaves with its own.

    The own prompt of a client that has not trained yet is what its examples match in the pool.
    """
    return join(shared, self._state(shared, client, round + 1)["own"])

  def train(
    self, shared: Params, client: int, round: int, first_step: int | None = None
  ) -> LocalResult:
    """Runs the client's local steps of one round.

    Args:
      shared: the global params (NumPy leaves).
      client: its index.
      round: from 1.
      first_step: where the schedule stands; by default where the round does.

    Raises:
      FloatingPointError: no step had a finite loss and gradient.
    """
    optim, site = self._config.optim, self._names[client]
    indices, steps = self._clients[site], optim.local_steps
    state = self._state(shared, client, round)
    rng = np.random.default_rng((self._config.seed, round, client))
    personal = 1.0 - self._config.prompter.local_drop
    batches = self._data.local_batches(indices, steps, optim.batch_size, rng, personal)
    first = jnp.asarray((round - 1) * steps if first_step is None else first_step, jnp.int32)
    params = jax.tree.map(jnp.array, join(shared, state["own"]))
    placed = replicate(params, self._mesh)
    trained, metrics = jax.device_get(self.program(placed, self._frozen, batches, first))
    finite = np.asarray(metrics.finite)
    if not finite.any():
      raise FloatingPointError(
        f"none of {steps} local steps had a finite loss and gradient; lower optim.prompt_lr and"
        " optim.mapper_lr, or look for bad examples"
      )
    trained_shared, own = split(trained, self._config.fed.share)
    residual = state.get("residual", self._no_residual)
    sent = uplink.compress(trained_shared, shared, residual, self._config.uplink)
    keep = {"own": own, "residual": sent.residual}
    self._store.save(site, round, {name: keep[name] for name in self._template})
    usage = np.mean(metrics.usage[finite], axis=0)
    return LocalResult(
      sent.params,
      len(indices),
      {
        "loss": float(np.mean(metrics.loss[finite])),
        "balance": float(np.mean(metrics.balance[finite])),
        "contrast": float(np.mean(metrics.contrast[finite])),
        "grad_norm": float(np.mean(metrics.grad_norm[finite])),
        "prompts_chosen": float(usage.sum()),
        "nonfinite_steps": float(steps - finite.sum()),
      }
      | {f"pool_usage_{i}": float(share) for i, share in enumerate(usage)},
      sent.masks,
    )

  def _state(self, shared: Params, client: int, before: int) -> Params:
    """What the client knows, or what a new one starts from."""
    site = self._names[client]
    state = self._store.load(site, before, self._template)
    if state is not None or "prompt" not in self._own.get(LOCAL, {}):
      return state or self._template
    rows = self._clients[site]
    size = self._config.eval.batch_size
    batch = self._data.batch(rows[:: -(-len(rows) // size)], size)
    prompt = np.asarray(self._matching(join(shared, self._own), batch))
    own = self._own | {LOCAL: self._own[LOCAL] | {"prompt": prompt}}
    return self._template | {"own": own}
