"""Baselines of a run (`fed.compare`): what its sites would have without the federation.

- *alone*: each site trains on its own examples only, in the rounds that averaged its update.
- *pooled*: one client with the examples of all sites takes as many steps as a site does, with
  batches as large as those of a round's sites together.

Both have the learning rates and the schedule of the federation, over its rounds and those of
`fed.finetune`. They have no local prompt and no prompts of sites. Malicious clients and
newcomers are left out. Nothing is sent. Every round is on disk: a run that is started again repeats
at most one, and ends with the same bits.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from afspl_jax.config import fields
from afspl_jax.config.experiment import Experiment
from afspl_jax.data.batches import Split
from afspl_jax.data.manifest import Clients
from afspl_jax.evaluation.generate import Evaluator
from afspl_jax.federation import strategies
from afspl_jax.federation.client.client_store import ClientStore
from afspl_jax.federation.client.local_trainer import LocalTrainer
from afspl_jax.models.captioner import Captioner, module_leaves
from afspl_jax.runs.frozen import FrozenPair, make_prompter
from afspl_jax.storage.client_status import Outcome, parse_status
from afspl_jax.storage.run_lines import RunLine
from afspl_jax.training.initial_prompt import make_initial_prompt
from afspl_jax.training.train_step import make_local_training
from afspl_jax.types import Params

ALONE, POOLED = "alone", "pooled"  # also the folders of their states, next to that of the clients'
_COMPARED = {"none": (), ALONE: (ALONE,), POOLED: (POOLED,), "both": (ALONE, POOLED)}
_TITLES = {ALONE: "each site alone", POOLED: "all data pooled"}


@dataclass(frozen=True)
class Baselines:
  """The baselines of a run, trained and used apart from its federation.

  Attributes:
    config: the experiment of a baseline.
    sites: names of the clients that are compared.
    names: names of all clients, in the order of their indices.
    trainers: trains each baseline; `ALONE` has the clients of the run, `POOLED` a single one.
    evaluator: for the models of the baselines.
  """

  config: Experiment
  sites: Sequence[str]
  names: Sequence[str]
  trainers: Mapping[str, LocalTrainer]
  evaluator: Evaluator

  def train(self, lines: Iterable[RunLine], progress: Callable[..., tqdm] = tqdm) -> None:
    """Trains what is missing.

    Args:
      lines: of clients.jsonl: the sites whose updates were averaged in each round.
      progress: makes the progress bars.

    Raises:
      FloatingPointError: in one round of a site, no step had a finite loss and gradient.
    """
    rounds = self._rounds(lines)
    for name, trainer in self.trainers.items():
      cohorts = rounds if name == ALONE else {round: [0] for round in rounds}
      left = {
        round: clients
        for round, clients in cohorts.items()
        # A round is repeated whole, since a cohort of another size would differ in the last bits.
        if any((trainer.newest_round(client) or 0) < round for client in clients)
      }
      done = len(cohorts) - len(left)
      bar = progress(
        left.items(), desc=_TITLES[name], unit="round", initial=done, total=len(cohorts)
      )
      for round, clients in bar:
        for result in trainer.train_cohort({}, clients, round).values():
          if isinstance(result, Exception):
            raise result

  def params(self, name: str, site: str) -> Params:
    """The trained model of a baseline that a site would use.

    Args:
      name: `ALONE` or `POOLED`.
      site: the name of a client of the run.
    """
    client = self.names.index(site) if name == ALONE else 0
    return self.trainers[name].personal({}, client, self.config.fed.rounds)

  def _rounds(self, lines: Iterable[RunLine]) -> dict[int, list[int]]:
    """The clients that train in each round."""
    rounds: dict[int, list[int]] = {}
    for line in lines:
      if parse_status(line["status"]).outcome is Outcome.OK and line["client"] in self.sites:
        rounds.setdefault(line["round"], []).append(self.names.index(line["client"]))
    last = self.config.fed.rounds
    everyone = [self.names.index(site) for site in self.sites]
    tuning = range(last - self.config.fed.finetune + 1, last + 1)
    # In one order, however the lines came to be: a cohort is trained in the order of its clients.
    return {round: sorted(who) for round, who in rounds.items()} | dict.fromkeys(tuning, everyone)


def make_baselines(
  config: Experiment,
  pair: FrozenPair,
  frozen: Params,
  data: Split,
  clients: Clients,
  sites: Sequence[str],
  mesh: Mesh,
  store: ClientStore,
) -> Baselines | None:
  """The baselines that a run asks for; None if it asks for none.

  Args:
    config: the experiment.
    pair: the frozen networks.
    frozen: leaves of the language model, replicated over the mesh.
    data: the training split.
    clients: indices of each client's examples, by its name.
    sites: the clients that are compared, sorted.
    mesh: devices that share a batch.
    store: keeps the clients' states; those of the baselines lie next to it.
  """
  wanted, fed = _COMPARED[config.fed.compare], config.fed
  if not wanted:
    return None
  config = fields.changed(
    config,
    {
      "fed.share": "none",
      "fed.rounds": fed.rounds + fed.finetune,
      "prompter.local": False,
      "fed.local_leaves": "",
      "fed.ditto": 0,
      "optim.local_only": 0,
      "prompter.routing": "none",
      # The last weight is the local prompt's.
      "prompter.fusion_weights": config.prompter.fusion_weights[:3],
    },
  )
  larger = {"optim.batch_size": fed.clients_per_round * config.optim.batch_size}
  prompter = make_prompter(config, pair, contrast=config.optim.contrast > 0)
  captioner = Captioner(prompter, pair.language_model)
  penalty = strategies.get_strategy("fedavg").client_penalty  # none
  program = make_local_training(captioner, config.optim, config.fed.rounds, penalty, mesh)
  trainer = functools.partial(
    LocalTrainer,
    program,
    make_initial_prompt(captioner, mesh),
    frozen,
    jax.device_get(module_leaves(prompter)),
    data,
    controlled=False,
    mesh=mesh,
  )
  everything = {"all": np.sort(np.concatenate([clients[site] for site in sites]))}
  parts = {ALONE: (clients, config), POOLED: (everything, fields.changed(config, larger))}
  return Baselines(
    config=config,
    sites=sites,
    names=sorted(clients),
    trainers={name: trainer(*parts[name], store=store.beside(name)) for name in wanted},
    evaluator=Evaluator(captioner, frozen, pair.tokenizer, config.eval, mesh),
  )
