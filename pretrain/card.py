"""Scores of the tiny CLIP and T5 without a prompter, for their model card."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from afspl_jax.data.shapes import language
from afspl_jax.data.shapes.scene import render, sample_look
from afspl_jax.models.huggingface.preprocessing import ImageProcessor, Tokenizer
from afspl_jax.models.huggingface.weights import load_language_model, load_vision_encoder
from afspl_jax.models.t5.t5 import shift_right
from pretrain.corpus import Corpus, embed, pretraining_scene

_SEED = 1  # pretraining uses 0
_SCENES = 512


def measure(folder: Path) -> dict[str, float]:
  """Scores FOLDER/clip and FOLDER/t5 on new samples of their pretraining data."""
  return _clip_scores(folder / "clip") | _t5_scores(folder / "t5")


def _clip_scores(folder: Path) -> dict[str, float]:
  """Returns image-to-text recall at 1 among 512 scenes with one caption each."""
  rng = np.random.default_rng(_SEED)
  scenes = [pretraining_scene(rng) for _ in range(_SCENES)]
  texts = [language.caption(scene, language.sample_style(rng), rng) for scene in scenes]
  images = [render(scene, sample_look(rng), rng) for scene in scenes]
  clip = load_vision_encoder(folder)
  _, image = nnx.jit(lambda m, x: m.encode_image(x))(clip, ImageProcessor(folder)(images))
  ids, mask = Tokenizer(folder).tokenize(texts, clip.config.text.max_length)
  text = nnx.jit(lambda m, i, x: m.encode_text(i, x))(clip, ids, mask)
  image, text = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text))
  right = jnp.argmax(image @ text.T, axis=1) == jnp.arange(_SCENES)
  return {"clip_image_to_text_recall_at_1_of_512": round(float(right.mean()), 3)}


def _t5_scores(folder: Path) -> dict[str, float]:
  """Returns the loss, and the share of answers that are right in every token."""
  t5, corpus = load_language_model(folder), Corpus(Tokenizer(folder).vocabulary)
  batch = corpus.batch(np.random.default_rng(_SEED), 1024)

  @nnx.jit
  def logits_of(t5, batch):
    x = embed(t5.embedding[...], batch, jax.random.key(_SEED))
    encoded = t5.encode(x, batch.mask)
    return t5.logits(t5.decode(shift_right(batch.targets), encoded, batch.mask))

  logits = logits_of(t5, batch)
  weights = batch.target_weights
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
  right = (jnp.argmax(logits, -1) == batch.targets) | (weights == 0)
  answers = np.asarray(right.all(axis=1))[weights[:, 0] > 1]
  return {
    "t5_loss": round(float(jnp.sum(losses * weights) / weights.sum()), 3),
    "t5_answers_right_from_text": round(float(answers.mean()), 3),
  }
