"""The trainers of the clients that are here: of the global params, and of models of their own."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from jax.sharding import Mesh

from afspl_jax.config import fields
from afspl_jax.config.experiment import Experiment
from afspl_jax.data.batches import Split
from afspl_jax.data.partition import Clients
from afspl_jax.federation.client.client_store import ClientStore
from afspl_jax.federation.client.ditto import DittoTrainer
from afspl_jax.federation.client.local_trainer import LocalTrainer
from afspl_jax.federation.privacy.dp_sgd_step import make_private_training
from afspl_jax.federation.strategies import Controlled, Strategy, get_strategy, shared_penalty
from afspl_jax.federation.strategies.fedprox import FedProx
from afspl_jax.models.captioner import Captioner
from afspl_jax.models.prompter.local import local_patterns
from afspl_jax.runs.newcomers import JOINED, joining
from afspl_jax.runs.trained.finished_run import COPIES, FINE_TUNED
from afspl_jax.training.initial_prompt import make_initial_prompt
from afspl_jax.training.train_step import make_local_training
from afspl_jax.types import Params

# Changes of the settings for local training of whole models.
_ALONE = {"fed.share": "none", "fed.local_leaves": "", "prompter.local_drop": 0}


class Trainers(NamedTuple):
  """The trainers of a process."""

  trainer: LocalTrainer | DittoTrainer
  tuner: LocalTrainer | None  # with `fed.finetune` (fine_tuning.py)
  joiner: LocalTrainer | None  # with `fed.newcomers` (newcomers.py)


def make_trainers(
  config: Experiment,
  captioner: Captioner,
  strategy: Strategy,
  frozen: Params,
  untrained: Params,
  data: Split,
  clients: Clients,
  mesh: Mesh,
  store: ClientStore,
  in_process: bool,
) -> Trainers:
  """Makes the trainers of an experiment.

  Args:
    config: the experiment.
    captioner: the forward passes.
    strategy: of the experiment.
    frozen: T5's leaves, replicated over the mesh.
    untrained: all leaves of the prompter before the first round (NumPy).
    data: the training split.
    clients: rows of each client.
    mesh: devices that share a batch.
    store: keeps what stays at the clients.
    in_process: whether all clients of a round train in this process.
  """
  program = _local_program(captioner, config, strategy, mesh)
  make_trainer = functools.partial(
    LocalTrainer,
    initial_prompt=make_initial_prompt(captioner, mesh),
    frozen=frozen,
    untrained=untrained,
    data=data,
    clients=clients,
    mesh=mesh,
    in_process=in_process,
  )
  controlled, alone = isinstance(strategy, Controlled), fields.changed(config, _ALONE)
  trainer: LocalTrainer | DittoTrainer
  trainer = make_trainer(program, config=config, controlled=controlled, store=store)
  tuner = joiner = None
  if config.fed.ditto:
    held = _copies_program(captioner, config, mesh)
    copies = store.beside(COPIES)
    trainer = DittoTrainer(
      trainer, make_trainer(held, config=alone, controlled=False, store=copies)
    )
  if config.fed.finetune:
    tuned = store.beside(FINE_TUNED)
    tuner = make_trainer(program, config=alone, controlled=False, store=tuned)
  if config.fed.newcomers:
    joined, fedavg = joining(config), get_strategy("fedavg")
    program = _local_program(captioner, joined, fedavg, mesh)
    joiner = make_trainer(program, config=joined, controlled=False, store=store.beside(JOINED))
  return Trainers(trainer, tuner, joiner)


def _local_program(
  captioner: Captioner, config: Experiment, strategy: Strategy, mesh: Mesh
) -> Callable[..., tuple[Any, ...]]:
  """The compiled local training of a cohort."""
  rounds, local = config.fed.rounds, local_patterns(config.fed)
  penalty = shared_penalty(strategy, local)
  if config.privacy.example_clip:
    return make_private_training(captioner, config.optim, config.privacy, rounds, penalty, mesh)
  controlled = isinstance(strategy, Controlled)
  return make_local_training(captioner, config.optim, rounds, penalty, mesh, controlled, local)


def _copies_program(
  captioner: Captioner, config: Experiment, mesh: Mesh
) -> Callable[..., tuple[Any, ...]]:
  """The same of their copies, held near the global params by FedProx's term, which is Ditto's."""
  penalty = shared_penalty(FedProx(mu=config.fed.ditto), local_patterns(config.fed))
  optim = fields.changed(config, {"optim.local_only": 0}).optim
  return make_local_training(captioner, optim, config.fed.rounds, penalty, mesh)
