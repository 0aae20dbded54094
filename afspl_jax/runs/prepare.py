"""Loads the models and data of an experiment, and builds its programs, before the first round."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from afspl_jax.config import fields
from afspl_jax.config.experiment import Experiment, to_dict
from afspl_jax.config.nested_values import digest
from afspl_jax.data import manifest
from afspl_jax.data.bad_records import MissingData
from afspl_jax.data.batches import Split
from afspl_jax.data.example_cap import capped
from afspl_jax.data.features import default_cache
from afspl_jax.data.partition import Clients, check_split_images, partition
from afspl_jax.data.sources import open_sources
from afspl_jax.data.splits import SPLITS
from afspl_jax.errors import UserError
from afspl_jax.evaluation.generate import Evaluator
from afspl_jax.federation import strategies
from afspl_jax.federation.client import malicious
from afspl_jax.federation.client.client_store import ClientStore
from afspl_jax.federation.client.ditto import DittoTrainer
from afspl_jax.federation.client.local_trainer import LocalTrainer
from afspl_jax.federation.protocol.image_statistics import ImageStatistics, image_statistics
from afspl_jax.federation.strategies import Strategy
from afspl_jax.models.captioner import Captioner, module_leaves
from afspl_jax.models.huggingface.locate import MissingBackbone, locate
from afspl_jax.models.prompter.local import (
  check_patterns,
  join_local,
  local_patterns,
  split_local,
)
from afspl_jax.models.prompter.site_prompts import fixed_leaves
from afspl_jax.runs.baselines import Baselines, make_baselines
from afspl_jax.runs.frozen import FrozenPair, load_pair, make_prompter
from afspl_jax.runs.newcomers import with_few_examples
from afspl_jax.runs.trainers import make_trainers
from afspl_jax.storage.versions import installed_version
from afspl_jax.training.mesh import make_mesh, replicate
from afspl_jax.types import Example, Params, Source

SERVER_SPLITS = ("validation", "test")  # read by a server whose clients are on other hosts
SITE_SPLITS = ("train",)  # read by a site of a networked federation


class Inputs(NamedTuple):
  """The checkpoints and data that a run reads."""

  folders: dict[str, Path]  # checkpoint folders of "clip" and "t5"
  sources: dict[str, Source]  # opened splits
  hashes: Mapping[str, str] | None = None  # of the checkpoints, if they were already computed


@dataclass(frozen=True)
class Setup:
  """Everything that a run needs before its first round."""

  config: Experiment
  shared: Params  # untrained leaves that travel (NumPy)
  local: Params  # untrained leaves that stay at each client
  splits: dict[str, Split]
  clients: dict[str, Clients]  # rows of each client, by split; {} if no client is here
  strategy: Strategy
  trainer: LocalTrainer | DittoTrainer | None  # trains the clients that are here
  tuner: LocalTrainer | None  # trains whole models of theirs, with `fed.finetune` (fine_tuning.py)
  joiner: LocalTrainer | None  # trains whole models of newcomers (newcomers.py)
  baselines: Baselines | None  # with `fed.compare`
  malicious: tuple[str, ...]  # clients that the config's `attack` makes malicious
  evaluator: Evaluator
  single_site: bool  # all data belong to one site
  facts: dict[str, Any]  # hashes that must be the same when the run is resumed
  processing: str  # hash of what this host's libraries make of texts and images

  def global_params(self, shared: Params) -> Params:
    """All leaves of the global model, which does not use its (untrained) local leaves."""
    return join_local(shared, self.local)

  @property
  def statistics(self) -> Callable[[int], ImageStatistics] | None:
    """Statistics of the images of a client that is here, if images are routed to sites."""
    return self._image_statistics if fixed_leaves(self.shared) else None

  def _image_statistics(self, client: int) -> ImageStatistics:
    train = self.clients["train"]
    return image_statistics(
      self.splits["train"].joint_of_images(train[sorted(train)[client]].tolist())
    )

  @property
  def terms(self) -> dict[str, Any]:
    """Settings that the server and its sites must share, besides the structure of messages."""
    flat = fields.leaves(to_dict(self.config))
    agreed = fields.agreed_names("always")
    if self.config.secure.aggregation:  # the largest weight determines the width of its integers
      agreed += ("fed.max_examples",)
    terms = {
      "version": installed_version("afspl_jax"),
      "backbones": self.facts["backbones"],
      "processing": self.processing,
      "config": fields.nested({name: flat[name] for name in agreed}),
    }
    if not self.single_site:  # otherwise two sites could train on the same examples
      terms["split"] = {name: flat[name] for name in fields.agreed_names("split")}
      terms["split"]["data.partition"] = manifest.comparable_partition(self.config.data.partition)
    return terms


def enable_compilation_cache() -> None:
  """Keeps compiled programs on disk, so that a restarted process does not compile them again.

  If JAX_COMPILATION_CACHE_DIR names a folder, JAX does this itself.
  """
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    jax.config.update("jax_compilation_cache_dir", str(default_cache().parent / "compiled"))
    # The default of one second would skip many small programs.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def find_inputs(config: Experiment, splits: Sequence[str] = SPLITS) -> Inputs:
  """Finds the checkpoints and data of a run.

  Fast, unless a data set must first be generated, or a checkpoint fetched from the hub.

  Args:
    config: the experiment.
    splits: the splits that this process reads.

  Raises:
    UserError: something is missing; the message names all of it.
  """
  missing: list[str] = []
  folders: dict[str, Path] = {}
  sources: dict[str, Source] = {}
  try:
    sources = open_sources(config.data, splits)
  except MissingData as error:
    missing.append(str(error))
  for kind in ("clip", "t5"):
    try:  # nothing is fetched for a run that cannot start
      folders[kind] = locate(getattr(config.backbone, kind), kind, fetch=not missing)
    except MissingBackbone as error:
      missing.append(str(error))
  if missing:
    raise UserError("this experiment needs files that are missing\n" + "\n".join(missing))
  return Inputs(folders, sources)


def prepare_setup(
  config: Experiment,
  inputs: Inputs,
  store: ClientStore,
  mesh: Mesh | None = None,
  site: str = "",
) -> Setup:
  """Loads backbones, encodes images, partitions examples over clients, and builds programs.

  Args:
    config: the experiment.
    inputs: from `find_inputs`; without "train" no client is trained here.
    store: keeps the state that stays at the clients.
    mesh: devices that share a batch; default all local ones.
    site: the name of the site, if all data belong to it; "" partitions the data over clients.

  Raises:
    UserError: models, data and settings do not fit each other.
  """
  mesh = mesh or make_mesh()
  pair = load_pair(config, inputs.folders, inputs.hashes)
  examples = read_examples(inputs.sources)
  check_split_images(examples)
  clients = _partition(config, examples, site)
  splits = _splits(config, inputs.sources, pair)
  prompter = make_prompter(config, pair, contrast=config.optim.contrast > 0)
  captioner = Captioner(prompter, pair.language_model)
  frozen = replicate(module_leaves(pair.language_model), mesh)
  strategy = strategies.get_strategy(config.fed.strategy, _taking_part(config))
  untrained = jax.device_get(module_leaves(prompter))
  check_patterns(untrained, config.fed)
  attackers = _attackers(config, clients)
  trainer = tuner = joiner = baselines = None
  if clients:
    train = _training_split(config, splits["train"], clients["train"], attackers)
    here = set(SPLITS) <= set(inputs.sources)  # else clients of a round train in several processes
    trainer, tuner, joiner = make_trainers(
      config,
      captioner,
      strategy,
      frozen,
      untrained,
      train,
      clients["train"],
      mesh,
      store,
      here,
    )
    if here:  # hosts of a network have no baselines: nobody has the data of all sites
      taking_part = sorted(clients["train"])[: _taking_part(config)]
      honest = [name for name in taking_part if name not in attackers]
      parts = train, clients["train"], honest
      baselines = make_baselines(config, pair, frozen, *parts, mesh, store)
  shared, local = split_local(untrained, local_patterns(config.fed))
  return Setup(
    config=config,
    shared=shared,
    local=local,
    splits=splits,
    clients=clients,
    strategy=strategy,
    trainer=trainer,
    tuner=tuner,
    joiner=joiner,
    baselines=baselines,
    malicious=attackers,
    evaluator=Evaluator(captioner, frozen, pair.tokenizer, config.eval, mesh),
    single_site=bool(site),
    facts=_facts(inputs, pair, partition_digest(examples, clients), attackers),
    processing=pair.processing(),
  )


def read_examples(sources: Mapping[str, Source]) -> dict[str, list[Example]]:
  """All examples of some splits."""
  return {name: [source[i] for i in range(len(source))] for name, source in sources.items()}


def partition_digest(
  examples: Mapping[str, Sequence[Example]], clients: Mapping[str, Clients]
) -> str:
  """A short hash of the assignment of examples to clients, as in the partition's manifest."""
  return digest(manifest.example_ids(examples, clients))


def _facts(
  inputs: Inputs, pair: FrozenPair, partition_hash: str, attackers: tuple[str, ...]
) -> dict[str, Any]:
  facts: dict[str, Any] = {
    "backbones": pair.fingerprints,
    "data": {name: source.fingerprint for name, source in inputs.sources.items()},
    "partition": partition_hash,
  }
  return facts | ({"hostile": attackers} if attackers else {})


def _taking_part(config: Experiment) -> int:
  """The number of clients that take part in rounds."""
  return config.data.num_clients - config.fed.newcomers


def _attackers(config: Experiment, clients: Mapping[str, Clients]) -> tuple[str, ...]:
  """Names of the malicious clients among those that are here."""
  if not clients:
    return ()
  names = sorted(clients["train"])[: _taking_part(config)]
  return malicious.malicious_sites(names, config.attack, config.seed)


def _partition(
  config: Experiment, examples: Mapping[str, Sequence[Example]], site: str
) -> dict[str, Clients]:
  if site:
    held = {name: {site: np.arange(len(part))} for name, part in examples.items()}
    train = capped(held["train"], examples["train"], config.data, config.seed)
    return held | {"train": train}
  if "train" not in examples:
    return {}
  clients = partition(examples, config.data, config.seed)
  return clients | {"train": with_few_examples(clients["train"], examples["train"], config)}


def _splits(
  config: Experiment, sources: Mapping[str, Source], pair: FrozenPair
) -> dict[str, Split]:
  contrast = config.optim.contrast > 0
  return {
    name: Split(
      source, pair.encoder, pair.tokenizer, config.data, contrast=contrast and name == "train"
    )
    for name, source in sources.items()
  }


def _training_split(
  config: Experiment, train: Split, clients: Clients, attackers: Sequence[str]
) -> Split:
  """The split that clients train on: a label-flipping attack changes only this one."""
  if config.attack.kind != "label_flip":
    return train
  rows = [clients[name] for name in attackers]
  return train.with_targets_of(malicious.wrong_targets(train.examples, rows))
