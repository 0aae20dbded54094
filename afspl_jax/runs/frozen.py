"""Loads the two frozen networks with their preprocessing, and makes a prompter for them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from afspl_jax.config.experiment import Experiment
from afspl_jax.config.routing import site_prompts
from afspl_jax.data.features import FeatureEncoder, default_cache
from afspl_jax.models.contracts import LanguageModel
from afspl_jax.models.huggingface.preprocessing import Tokenizer
from afspl_jax.models.huggingface.weights import (
  fingerprint,
  load_image_processor,
  load_language_model,
  load_vision_encoder,
)
from afspl_jax.models.prompter.prompter import Prompter

_LENGTH, _SIDE = 64, 256  # tokens; pixels
_INIT_WORDS = 255  # tokens of `prompter.init_text` that count
_TEXTS = (
  "",
  "  A photo of TWO dogs,\ta cat -- and 1,234.5 km/h!  ",
  "What's the patient's diagnosis? (e.g. pneumonia)",
  "Zwölf Boxkämpfer jagen Viktor quer über den Sylter Deich",
  "e\u0301 \u00e9 \ufb01 \uff21 \u00bd \u4e2d\u6587 \U0001f600 \u200b\u00a0x",
  "</s> <pad> <extra_id_0> <|endoftext|> [CLS] \u2581",
  "supercalifragilisticexpialidocious " * 12,
)


@dataclass(frozen=True)
class FrozenPair:
  """The two frozen networks, as the rest of a run uses them."""

  encoder: FeatureEncoder  # the vision encoder, with its preprocessing and cache
  language_model: LanguageModel
  tokenizer: Tokenizer  # the language model's
  fingerprints: dict[str, str]  # of the checkpoints "clip" and "t5", as `backbone` names them

  def processing(self) -> str:
    """A short hash of what tokenizers and image processor make of some texts and an image.

    Two hosts may have the same checkpoints, and libraries whose versions read them differently.
    """
    side = np.arange(_SIDE)
    colours = np.stack(np.broadcast_arrays(side[:, None], side, side[:, None] ^ side), axis=-1)
    image = Image.fromarray(colours.astype(np.uint8))
    arrays = self.tokenizer.tokenize(_TEXTS, _LENGTH)[0], *self.encoder.process(_TEXTS, image)
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:16]


def load_pair(
  config: Experiment, folders: Mapping[str, Path], fingerprints: Mapping[str, str] | None = None
) -> FrozenPair:
  """Loads the checkpoints that `config.backbone` names "clip" and "t5".

  Args:
    config: gives the dtype.
    folders: of both.
    fingerprints: of both, if they are known already.

  Raises:
    UserError: a folder that is no such checkpoint.
  """
  dtype = jnp.dtype(config.backbone.dtype)
  fingerprints = {
    name: fingerprints[name] if fingerprints else fingerprint(folder)
    for name, folder in folders.items()
  }
  encoder = load_encoder(config, folders["clip"], fingerprints["clip"])
  language_model = load_language_model(folders["t5"], dtype, dtype)
  sizes = language_model.sizes
  tokenizer = Tokenizer(folders["t5"], continued=sizes.start_id is None)
  # Only a start token is ever read; other padding is hidden by masks.
  tokenizer.check_model(str(folders["t5"]), sizes.vocabulary, sizes.eos_id, sizes.start_id)
  return FrozenPair(encoder, language_model, tokenizer, fingerprints)


def load_encoder(config: Experiment, folder: Path, identity: str) -> FeatureEncoder:
  """Loads a vision encoder with its image processor and tokenizer.

  Args:
    config: gives the dtype.
    folder: the checkpoint.
    identity: its fingerprint.

  Raises:
    UserError: a folder that is no such checkpoint.
  """
  dtype = jnp.dtype(config.backbone.dtype)
  encoder = load_vision_encoder(folder, dtype, dtype)
  processor, tokenizer = load_image_processor(folder), Tokenizer(folder)
  return FeatureEncoder(encoder, processor, tokenizer, identity, default_cache())


def make_prompter(config: Experiment, pair: FrozenPair, *, contrast: bool) -> Prompter:
  """Makes the untrained prompter of an experiment; its seed decides every leaf.

  Args:
    config: the experiment.
    pair: the networks that the prompter connects.
    contrast: whether it has the projection of the contrastive loss, which only training needs.
  """
  words = pair.tokenizer.words(config.prompter.init_text)[:_INIT_WORDS]
  return Prompter(
    config.prompter,
    pair.encoder.sizes,
    pair.language_model.embedding_matrix(),
    jnp.asarray(words, jnp.int32),
    contrast=contrast,
    sites=site_prompts(config),
    rngs=nnx.Rngs(config.seed),
  )
