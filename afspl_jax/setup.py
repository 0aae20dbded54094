"""An experiment's backbones, data, clients and programs, made ready for its first round."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from afspl_jax.backbones.locate import MissingBackbone, locate
from afspl_jax.backbones.processing import ImageProcessor, Tokenizer
from afspl_jax.backbones.weights import fingerprint, load_clip, load_t5
from afspl_jax.captioner import Captioner, leaves
from afspl_jax.config import Experiment, digest
from afspl_jax.data.batches import Split
from afspl_jax.data.features import FeatureEncoder, default_cache
from afspl_jax.data.partition import Clients, partition
from afspl_jax.data.sources import open_source
from afspl_jax.data.tfds_source import MissingData
from afspl_jax.errors import UserError
from afspl_jax.evaluate import Evaluator
from afspl_jax.federation import strategies
from afspl_jax.federation.client_store import ClientStore
from afspl_jax.federation.training import LocalTrainer
from afspl_jax.prompts.local import join, split
from afspl_jax.prompts.prompter import Prompter
from afspl_jax.step import make_mesh, replicate
from afspl_jax.types import Params, Source

SPLITS = ("train", "validation", "test")


class Inputs(NamedTuple):
  """What a run reads."""

  folders: dict[str, Path]  # checkpoint folders of "clip" and "t5"
  sources: dict[str, Source]  # opened splits


@dataclass(frozen=True)
class Setup:
  """All that a run needs before its first round."""

  config: Experiment
  shared: Params  # the untrained prompter's leaves that travel (NumPy)
  own: Params  # its leaves that stay with each client
  splits: dict[str, Split]
  clients: dict[str, Clients]  # each client's own part of every split
  trainer: LocalTrainer
  evaluator: Evaluator
  facts: dict[str, Any]  # hashes that must not change when a run goes on

  def whole(self, shared: Params) -> Params:
    """A prompter's leaves as the server sees it; the untrained own ones are not used by it."""
    return join(shared, self.own)


def find(config: Experiment) -> Inputs:
  """Looks for all that a run reads; quick, but for a data set that has yet to be drawn.

  Raises:
    UserError: naming everything that is missing, not only the first thing.
  """
  missing, folders, sources = [], {}, {}
  for kind in ("clip", "t5"):
    try:
      folders[kind] = locate(getattr(config.backbone, kind), kind)
    except MissingBackbone as error:
      missing.append(str(error))
  try:
    for split in SPLITS:
      sources[split] = open_source(config.data.source, split, config.data.dir)
  except MissingData as error:
    missing.append(str(error))
  if missing:
    raise UserError("this experiment needs what is not on this machine\n" + "\n".join(missing))
  return Inputs(folders, sources)


def prepare(
  config: Experiment, inputs: Inputs, store: ClientStore, mesh: Mesh | None = None
) -> Setup:
  """Loads backbones, encodes images, splits examples over clients, builds programs.

  Args:
    config: the experiment.
    inputs: from `find`.
    store: keeps what never leaves the clients.
    mesh: devices that share a batch; default all local ones.

  Raises:
    UserError: something does not fit.
  """
  mesh = mesh or make_mesh()
  folders, sources = inputs
  dtype = jnp.dtype(config.backbone.dtype)
  clip = load_clip(folders["clip"], dtype, dtype)
  t5 = load_t5(folders["t5"], dtype, dtype)
  tokenizer = Tokenizer(folders["t5"])
  examples = {name: [source[i] for i in range(len(source))] for name, source in sources.items()}
  clients = partition(examples, config.data, config.seed)

  prints = {kind: fingerprint(folder) for kind, folder in folders.items()}
  encoder = FeatureEncoder(
    clip,
    ImageProcessor(folders["clip"]),
    Tokenizer(folders["clip"]),
    prints["clip"],
    default_cache(),
  )
  contrast = config.optim.contrast > 0
  splits = {
    name: Split(source, encoder, tokenizer, config.data, contrast=contrast and name == "train")
    for name, source in sources.items()
  }

  words, _ = tokenizer.tokenize([config.prompter.init_text], 256)
  words = words[words > max(tokenizer.pad_id, tokenizer.eos_id)]
  prompter = Prompter(
    config.prompter,
    clip.config,
    t5.embedding[...],
    jnp.asarray(words),
    contrast=contrast,
    rngs=nnx.Rngs(config.seed),
  )
  captioner = Captioner(prompter, t5)
  frozen = replicate(leaves(t5), mesh)
  penalty = strategies.get(config.fed.strategy).client_penalty
  untrained = jax.device_get(leaves(prompter))
  trainer = LocalTrainer(
    captioner, frozen, untrained, splits["train"], clients["train"], config, penalty, mesh, store
  )
  shared, own = split(untrained, config.fed.share)
  return Setup(
    config=config,
    shared=shared,
    own=own,
    splits=splits,
    clients=clients,
    trainer=trainer,
    evaluator=Evaluator(captioner, frozen, tokenizer, config.eval, mesh),
    facts={
      "backbones": prints,
      "data": {name: source.fingerprint for name, source in sources.items()},
      "partition": digest(
        {
          name: {client: indices.tolist() for client, indices in parts.items()}
          for name, parts in clients.items()
        }
      ),
    },
  )
