"""A vision encoder and a language model of one's own work without an edit of the package."""

import json
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxtyping import Array
from PIL import Image

from afspl_jax import models
from afspl_jax.config import experiment as settings
from afspl_jax.config.experiment import Optim
from afspl_jax.data.features import FeatureEncoder
from afspl_jax.models import architectures
from afspl_jax.models.captioner import Captioner, module_leaves
from afspl_jax.models.contracts import (
  DecodeCache,
  ImagePreprocessor,
  LanguageModel,
  LanguageSizes,
  VisionEncoder,
  VisionSizes,
)
from afspl_jax.models.decoding import Decoding, make_decoder
from afspl_jax.models.huggingface.locate import TINY
from afspl_jax.models.huggingface.preprocessing import Tokenizer
from afspl_jax.models.huggingface.weights import (
  BackboneError,
  load_image_processor,
  load_vision_encoder,
  save_backbone,
)
from afspl_jax.models.prompter.prompter import Prompter
from afspl_jax.training.train_step import make_local_training
from tests.conftest import make_batch

# As in `make_batch`, but without a token before those of the patches.
SIZES = VisionSizes(8, 0, 16, token_width=12, feature_width=6, text_length=32)


class MeanColours(nnx.Module):
  """Encodes an image by the colours of its 2 x 2 patches, a text by the mean of its tokens."""

  dtype = jnp.float32

  def __init__(self, rngs: nnx.Rngs):
    self.project = nnx.Linear(12, 6, rngs=rngs)
    self.words = nnx.Embed(1000, 6, rngs=rngs)

  @property
  def sizes(self) -> VisionSizes:
    return SIZES

  def encode_image(self, pixels):
    grid = pixels.reshape(len(pixels), 4, 2, 4, 2, 3).transpose(0, 1, 3, 2, 4, 5)
    tokens = grid.reshape(len(pixels), 16, 12)
    return tokens, self.project(tokens.mean(axis=1))

  def encode_text(self, ids, mask):
    return jnp.sum(self.words(ids % 1000) * mask[..., None], axis=1)


class Shrink:
  """Scales every image to 8 x 8 pixels."""

  size = (8, 8)
  levels = np.repeat(np.linspace(-1, 1, 256, dtype=np.float32)[:, None], 3, axis=1)

  def crop(self, image: Image.Image):
    return np.asarray(image.convert("RGB").resize((8, 8)))


class SumCache(NamedTuple):
  """The sum of the tokens' embeddings so far, for each text, behind that of the prefix."""

  total: Array  # [b beams d]

  def fork(self, beams: int) -> "SumCache":
    return self._replace(total=jnp.repeat(self.total, beams, axis=1))

  def follow(self, parents) -> "SumCache":
    return self._replace(total=jnp.take_along_axis(self.total, parents[..., None], axis=1))


class BagOfWords(nnx.Module):
  """A decoder-only model: the next token depends on the sum of all embeddings before it.

  Its states are a tree of two arrays, the sum and the number of positions.
  """

  def __init__(self, rngs: nnx.Rngs):
    self.words = nnx.Embed(40, 16, rngs=rngs)
    self.head = nnx.Linear(16, 40, rngs=rngs)

  @property
  def sizes(self) -> LanguageSizes:
    return LanguageSizes(width=16, vocabulary=40, pad_id=0, eos_id=1)

  def embedding_matrix(self):
    return self.words.embedding[...]

  def embed(self, ids):
    return self.words(ids)

  def encode(self, embeddings, mask):
    kept = jnp.where(mask[..., None], embeddings, 0.0)
    return {"total": kept.sum(axis=1), "count": mask.sum(axis=1).astype(jnp.float32)}

  def summarise(self, states, mask):
    return states["total"] / states["count"][:, None]

  def _logits(self, total):
    return self.head(jnp.tanh(total))

  def target_logits(self, states, mask, targets):
    before = jnp.cumsum(self.words(targets[:, :-1]), axis=1)
    return self._logits(states["total"][:, None] + jnp.pad(before, ((0, 0), (1, 0), (0, 0))))

  def start(self, states, mask, length):
    return self._logits(states["total"]), SumCache(states["total"][:, None])

  def decode_step(self, ids, cache):
    total = cache.total + self.words(ids).reshape(cache.total.shape)
    return self._logits(total).reshape(len(ids), -1), SumCache(total)


@pytest.fixture(scope="module")
def toy():
  """The two toys with a prompter between them."""
  language_model = BagOfWords(nnx.Rngs(1))
  config = settings.Prompter(tokens=4, pool=6, k_max=3, key_dim=5, fusion_hidden=7)
  embedding, no_words = language_model.embedding_matrix(), jnp.zeros(0, jnp.int32)
  prompter = Prompter(config, SIZES, embedding, no_words, contrast=True, rngs=nnx.Rngs(2))
  return Captioner(prompter, language_model), module_leaves(prompter), module_leaves(language_model)


def toy_batch(seed: int, *leading: int):
  batch = make_batch(seed, *leading)
  return batch._replace(tokens=batch.tokens[..., 1:, :])


def test_the_toys_satisfy_the_contracts():
  assert isinstance(MeanColours(nnx.Rngs(0)), VisionEncoder)
  assert isinstance(Shrink(), ImagePreprocessor)
  assert isinstance(BagOfWords(nnx.Rngs(0)), LanguageModel)
  assert isinstance(SumCache(jnp.zeros((1, 1, 2))), DecodeCache)


@pytest.mark.parametrize("config", [Decoding(7), Decoding(7, beams=3, length_penalty=0.0)])
def test_decoding_scores_equal_the_teacher_forced_log_probabilities(toy, one_device, config):
  captioner, params, frozen = toy
  batch = toy_batch(3, 8)
  decoded = make_decoder(captioner, config, one_device)(params, frozen, batch)
  logits = captioner.logits(frozen, captioner.encode(params, frozen, batch), decoded.ids)
  gains = jnp.take_along_axis(jax.nn.log_softmax(logits), decoded.ids[..., None], axis=-1)[..., 0]
  ended = np.cumsum(decoded.ids == captioner.eos_id, axis=1) - (decoded.ids == captioner.eos_id)
  np.testing.assert_allclose(
    decoded.scores, np.sum(np.asarray(gains), axis=1, where=ended == 0), rtol=1e-4
  )


def test_training_lowers_the_loss_and_has_a_contrastive_gradient(toy, one_device):
  captioner, params, frozen = toy
  optim = Optim(batch_size=4, local_steps=20, contrast=0.5, contrast_warmup=0.1)
  training = make_local_training(
    captioner, optim, 1, lambda params, start: jnp.zeros(()), one_device
  )
  batch = jax.tree.map(lambda x: jnp.repeat(x[None], 20, axis=0), toy_batch(0, 1, 4))
  start = jax.tree.map(lambda x: jnp.array(x)[None], params)
  trained, metrics = training(jax.tree.map(jnp.copy, start), frozen, start, batch, jnp.asarray(0))
  assert metrics.loss[-1, 0] < 0.9 * metrics.loss[0, 0]
  kernels = [tree["local"]["contrast"]["kernel"] for tree in (start, trained)]
  assert np.abs(kernels[0] - kernels[1]).max() > 0


def test_the_feature_encoder_encodes_and_caches_images_and_texts(tmp_path):
  encoder = MeanColours(nnx.Rngs(0))
  features = FeatureEncoder(encoder, Shrink(), Tokenizer(TINY / "clip"), "toy", tmp_path)
  image = Image.new("RGB", (30, 20), (255, 0, 0))
  tokens, joint = features.encode_uncached([image])
  assert tokens.shape == (1, 16, 12) and joint.shape == (1, 6)
  np.testing.assert_allclose(tokens, np.tile([1.0, -1, -1], (1, 16, 4)))
  first = features.texts(["a red circle"])
  again = FeatureEncoder(
    MeanColours(nnx.Rngs(7)), Shrink(), Tokenizer(TINY / "clip"), "toy", tmp_path
  )
  np.testing.assert_array_equal(again.texts(["a red circle"]), first)


ARCHITECTURE = """
import types

from afspl_jax.models.architectures import Architecture
from afspl_jax.models.contracts import VisionEncoder
from afspl_jax.models.huggingface.key_table import KeyTable, Layout, Leaf
from tests.models.test_contracts import MeanColours, Shrink


class Toy(MeanColours):
  def __init__(self, config, *, dtype=None, param_dtype=None, rngs):
    super().__init__(rngs)
    self.config = config


class Config(types.SimpleNamespace):
  def to_hf(self):
    return {"model_type": "toy-vision"}


LEAVES = {
  "project.weight": Leaf(("project", "kernel"), Layout.LINEAR),
  "project.bias": Leaf(("project", "bias")),
  "words": Leaf(("words", "embedding")),
}
ARCHITECTURE = Architecture(
  "toy-vision",
  VisionEncoder,
  Toy,
  lambda raw, tensors: Config(),
  lambda config: KeyTable(LEAVES, {}, frozenset()),
  lambda folder: Shrink(),
)
"""


def test_a_folder_in_models_is_all_that_a_new_backbone_needs(tmp_path, monkeypatch):
  folder = tmp_path / "models" / "toy"
  folder.mkdir(parents=True)
  (folder / "__init__.py").touch()
  (folder / "architecture.py").write_text(ARCHITECTURE)
  monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path / "models")])
  architectures.architectures.cache_clear()
  try:
    toy = architectures.architectures()["toy-vision"]
    saved = toy.model(toy.read_config({}, {}), rngs=nnx.Rngs(3))
    save_backbone(saved, tmp_path / "checkpoint")
    loaded = load_vision_encoder(tmp_path / "checkpoint")
    pixels = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    np.testing.assert_array_equal(loaded.encode_image(pixels)[1], saved.encode_image(pixels)[1])
    assert load_image_processor(tmp_path / "checkpoint").size == (8, 8)
  finally:
    architectures.architectures.cache_clear()
    for name in [name for name in sys.modules if name.startswith("afspl_jax.models.toy")]:
      del sys.modules[name]


@pytest.mark.parametrize("model_type", [["clip"], None, "../clip", "toy-vision"])
def test_an_unknown_model_type_is_an_error_that_lists_the_known_ones(tmp_path, model_type):
  (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
  found = architectures.architectures().values()
  known = " or ".join(f'"{x.model_type}"' for x in found if x.contract is VisionEncoder)
  assert '"clip"' in known and '"t5"' not in known
  with pytest.raises(BackboneError, match=f'"model_type" must be {known}; got'):
    load_vision_encoder(tmp_path)
