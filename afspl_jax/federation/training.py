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
from afspl_jax.federation.client import LocalResult
from afspl_jax.step import Penalty, make_local_training, replicate
from afspl_jax.types import Params


class LocalTrainer:
  """Trains any client of this process on its own part of the training split.

  Args:
    captioner: the forward passes.
    frozen: T5's leaves, replicated over the mesh.
    split: the training split.
    clients: indices of each client's examples, by its name.
    config: of the experiment.
    penalty: the strategy's addition to the local loss.
    mesh: devices that share a batch.
  """

  def __init__(
    self,
    captioner: Captioner,
    frozen: Params,
    split: Split,
    clients: Mapping[str, Int[np.ndarray, " examples"]],
    config: Experiment,
    penalty: Penalty,
    mesh: Mesh,
  ):
    self._frozen, self._split, self._mesh = frozen, split, mesh
    self._names = sorted(clients)
    self._clients, self._seed, self._optim = clients, config.seed, config.optim
    self.program = make_local_training(captioner, config.optim, config.fed.rounds, penalty, mesh)

  def site(self, client: int) -> str:
    """The client's name."""
    return self._names[client]

  def train(self, params: Params, client: int, round: int) -> LocalResult:
    """Runs the client's local steps of one round.

    Raises:
      FloatingPointError: no step had a finite loss and gradient.
    """
    indices = self._clients[self._names[client]]
    steps, size = self._optim.local_steps, self._optim.batch_size
    rng = np.random.default_rng((self._seed, round, client))
    batches = self._split.local_batches(indices, steps, size, rng)
    first = jnp.asarray((round - 1) * steps, jnp.int32)
    placed = replicate(jax.tree.map(jnp.array, params), self._mesh)
    trained, metrics = self.program(placed, self._frozen, batches, first)
    trained, metrics = jax.device_get((trained, metrics))
    finite = np.asarray(metrics.finite)
    if not finite.any():
      raise FloatingPointError(
        f"none of {steps} local steps had a finite loss and gradient; lower optim.prompt_lr and"
        " optim.mapper_lr, or look for bad examples"
      )
    return LocalResult(
      trained,
      len(indices),
      {
        "loss": float(np.mean(metrics.loss[finite])),
        "balance": float(np.mean(metrics.balance[finite])),
        "grad_norm": float(np.mean(metrics.grad_norm[finite])),
        "prompts_chosen": float(np.mean(metrics.chosen[finite])),
        "nonfinite_steps": float(steps - finite.sum()),
      },
    )
