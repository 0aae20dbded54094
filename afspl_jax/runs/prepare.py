"""An experiment's backbones, data, clients and programs, made ready for its first round."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from afspl_jax.config.experiment import Experiment, digest, to_dict
from afspl_jax.data import manifest
from afspl_jax.data.bad_records import MissingData
from afspl_jax.data.batches import Split
from afspl_jax.data.features import default_cache
from afspl_jax.data.partition import Clients, check_images, partition
from afspl_jax.data.records import SPLITS
from afspl_jax.data.sources import open_sources
from afspl_jax.errors import UserError
from afspl_jax.evaluation.generate import Evaluator
from afspl_jax.federation import strategies
from afspl_jax.federation.client import malicious
from afspl_jax.federation.client.client_store import ClientStore
from afspl_jax.federation.client.local_trainer import LocalTrainer
from afspl_jax.federation.strategies import Strategy
from afspl_jax.models.captioner import Captioner, leaves
from afspl_jax.models.huggingface.locate import MissingBackbone, locate
from afspl_jax.models.prompter.local import join, split
from afspl_jax.runs.frozen import load_pair, make_prompter
from afspl_jax.storage.versions import installed_version
from afspl_jax.training.train_step import make_mesh, replicate
from afspl_jax.types import Example, Params, Source

SCORED = ("validation", "test")  # what a server holds that trains no client itself
TRAINED = ("train",)  # what a site holds that scores nothing


class Inputs(NamedTuple):
  """What a run reads."""

  folders: dict[str, Path]  # checkpoint folders of "clip" and "t5"
  sources: dict[str, Source]  # opened splits
  prints: Mapping[str, str] | None = None  # hashes of the checkpoints, if already compared


@dataclass(frozen=True)
class Setup:
  """All that a run needs before its first round."""

  config: Experiment
  shared: Params  # the untrained prompter's leaves that travel (NumPy)
  own: Params  # its leaves that stay with each client
  splits: dict[str, Split]
  clients: dict[str, Clients]  # each client's own part of every split; {} where none is here
  strategy: Strategy
  trainer: LocalTrainer | None  # of the clients that are here
  malicious: tuple[str, ...]  # those of them that are made so by config's `attack`
  evaluator: Evaluator
  own_data: bool  # all of it is that of one site
  facts: dict[str, Any]  # hashes that must not change when a run goes on

  def whole(self, shared: Params) -> Params:
    """A prompter's leaves as the server sees it; the untrained own ones are not used by it."""
    return join(shared, self.own)

  @property
  def terms(self) -> dict[str, Any]:
    """What a server and its sites must have in common, besides the structure of what travels."""
    config = to_dict(self.config)
    common = {
      group: config[group] for group in ("prompter", "optim", "uplink", "privacy", "secure")
    }
    common |= {group: {n: config[group][n] for n in names} for group, names in _COMMON.items()}
    if config["secure"]["aggregation"]:  # its numbers are as wide as the largest weight asks for
      common["fed"]["max_examples"] = config["fed"]["max_examples"]
    terms = {
      "version": installed_version("afspl_jax"),
      "backbones": self.facts["backbones"],
      "config": common | {"seed": config["seed"]},
    }
    if not self.own_data:  # or else two sites might train on the same examples
      terms["split"] = {f"data.{name}": config["data"][name] for name in _SPLIT}
      terms["split"]["data.partition"] = manifest.agreed(self.config.data.partition)
    return terms


_SPLIT = (
  "source",
  "fields",
  "partition",
  "dirichlet_alpha",
  "categories",
  "capacity_ratio",
  "num_clients",
  "min_examples",
)
_COMMON = {
  "data": ("instruction_length", "target_length", "caption_instruction"),
  "backbone": ("dtype",),
  "fed": ("rounds", "strategy", "share"),
}


def keep_compiled() -> None:
  """Keeps compiled programs on disk, so that a process that is started again compiles none anew.

  Where JAX_COMPILATION_CACHE_DIR names a folder, JAX does so by itself.
  """
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    jax.config.update("jax_compilation_cache_dir", str(default_cache().parent / "compiled"))
    # Not one second: what is small is many.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def find(config: Experiment, splits: Sequence[str] = SPLITS) -> Inputs:
  """Looks for all that a run reads; quick, but for a data set that has yet to be drawn.

  Args:
    config: the experiment.
    splits: those that are needed here.

  Raises:
    UserError: naming everything that is missing, not only the first thing.
  """
  missing, folders = [], {}
  sources: dict[str, Source] = {}
  for kind in ("clip", "t5"):
    try:
      folders[kind] = locate(getattr(config.backbone, kind), kind)
    except MissingBackbone as error:
      missing.append(str(error))
  try:
    sources = open_sources(config.data, splits)
  except MissingData as error:
    missing.append(str(error))
  if missing:
    raise UserError("this experiment needs what is not on this machine\n" + "\n".join(missing))
  return Inputs(folders, sources)


def prepare(
  config: Experiment,
  inputs: Inputs,
  store: ClientStore,
  mesh: Mesh | None = None,
  site: str = "",
) -> Setup:
  """Loads backbones, encodes images, splits examples over clients, builds programs.

  Args:
    config: the experiment.
    inputs: from `find`; without "train" there is nobody to train here.
    store: keeps what never leaves the clients.
    mesh: devices that share a batch; default all local ones.
    site: where all the data is that of one site, its name; else data is split over clients.

  Raises:
    UserError: something does not fit.
  """
  mesh = mesh or make_mesh()
  sources = inputs.sources
  pair = load_pair(config, inputs.folders, inputs.prints)
  examples = {name: [source[i] for i in range(len(source))] for name, source in sources.items()}
  check_images(examples)
  clients: dict[str, Clients] = {}
  if site:
    clients = {name: {site: np.arange(len(part))} for name, part in examples.items()}
  elif "train" in examples:
    clients = partition(examples, config.data, config.seed)

  contrast = config.optim.contrast > 0
  splits = {
    name: Split(
      source, pair.encoder, pair.tokenizer, config.data, contrast=contrast and name == "train"
    )
    for name, source in sources.items()
  }

  prompter = make_prompter(config, pair, contrast=contrast)
  captioner = Captioner(prompter, pair.language_model)
  frozen = replicate(leaves(pair.language_model), mesh)
  taking_part = config.data.num_clients - config.fed.newcomers
  strategy = strategies.get(config.fed.strategy, taking_part)
  untrained = jax.device_get(leaves(prompter))
  trainer = None
  bad: tuple[str, ...] = ()
  if clients:
    bad = malicious.malicious_sites(
      sorted(clients["train"])[:taking_part], config.attack, config.seed
    )
    train = splits["train"]
    if config.attack.kind == "label_flip":  # what is scored stays as it is
      theirs = [clients["train"][name] for name in bad]
      train = train.with_targets_of(malicious.wrong_targets(train.examples, theirs))
    taught = train, clients["train"]
    here = set(SPLITS) <= set(sources)  # else clients of a round train in several processes
    trainer = LocalTrainer(
      captioner, frozen, untrained, *taught, config, strategy, mesh, store, in_process=here
    )
  shared, own = split(untrained, config.fed.share)
  return Setup(
    config=config,
    shared=shared,
    own=own,
    splits=splits,
    clients=clients,
    strategy=strategy,
    trainer=trainer,
    malicious=bad,
    evaluator=Evaluator(captioner, frozen, pair.tokenizer, config.eval, mesh),
    own_data=bool(site),
    facts={
      "backbones": pair.fingerprints,
      "data": {name: source.fingerprint for name, source in sources.items()},
      "partition": partition_digest(examples, clients),
    }
    | ({"hostile": bad} if bad else {}),
  )


def partition_digest(
  examples: Mapping[str, Sequence[Example]], clients: Mapping[str, Clients]
) -> str:
  """A short hash of which examples of every split are whose, as in the run's manifest."""
  return digest(manifest.ids(examples, clients))
