"""The frozen pair, loaded, with what makes its inputs of images and texts; and a prompter on it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
from flax import nnx

from afspl_jax.config.experiment import Experiment
from afspl_jax.data.features import FeatureEncoder, default_cache
from afspl_jax.models.huggingface.preprocessing import ImageProcessor, Tokenizer
from afspl_jax.models.huggingface.weights import fingerprint, load_clip, load_t5
from afspl_jax.models.prompter.prompter import Prompter
from afspl_jax.models.t5.t5 import T5


@dataclass(frozen=True)
class FrozenPair:
  """What is never trained."""

  encoder: FeatureEncoder  # of images and texts, by CLIP
  t5: T5
  tokenizer: Tokenizer  # T5's
  prints: dict[str, str]  # hashes of "clip" and "t5"


def load_pair(
  config: Experiment, folders: Mapping[str, Path], prints: Mapping[str, str] | None = None
) -> FrozenPair:
  """Loads the checkpoints of "clip" and "t5".

  Args:
    config: gives the dtype.
    folders: of both.
    prints: hashes of both, where they have just been compared; else they are made here.

  Raises:
    UserError: a folder that is no such checkpoint.
  """
  dtype = jnp.dtype(config.backbone.dtype)
  prints = {
    kind: prints[kind] if prints else fingerprint(folder) for kind, folder in folders.items()
  }
  encoder = load_encoder(config, folders["clip"], prints["clip"])
  t5 = load_t5(folders["t5"], dtype, dtype)
  return FrozenPair(encoder, t5, Tokenizer(folders["t5"]), prints)


def load_encoder(config: Experiment, folder: Path, identity: str) -> FeatureEncoder:
  """Loads a CLIP with its processor and tokenizer.

  Args:
    config: gives the dtype.
    folder: the checkpoint.
    identity: its hash.

  Raises:
    UserError: a folder that is no such checkpoint.
  """
  dtype = jnp.dtype(config.backbone.dtype)
  clip = load_clip(folder, dtype, dtype)
  return FeatureEncoder(clip, ImageProcessor(folder), Tokenizer(folder), identity, default_cache())


def make_prompter(config: Experiment, pair: FrozenPair, *, contrast: bool) -> Prompter:
  """The untrained prompter of an experiment, the same whoever makes it.

  Args:
    config: the experiment.
    pair: what it stands between.
    contrast: whether it has the projection of the contrastive loss, of which only training knows.
  """
  tokenizer = pair.tokenizer
  words, _ = tokenizer.tokenize([config.prompter.init_text], 256)
  words = words[words > max(tokenizer.pad_id, tokenizer.eos_id)]
  return Prompter(
    config.prompter,
    pair.encoder.config,
    pair.t5.embedding[...],
    jnp.asarray(words),
    contrast=contrast,
    rngs=nnx.Rngs(config.seed),
  )
