"""The text corpus on which the tiny T5 is pretrained, without images.

A sample is laid out like a captioner's input: prompt slots, then content, then an instruction. The
content is either a list of objects, or a *word raster*: a 4 x 4 grid of vectors, each a weighted,
noisy sum of the words for the things in that cell. So the encoder learns to read mixtures of word
embeddings, which a linear map of image patches produces. Prompt slots sometimes hold words of
another caption in the same style, so that soft prompts can set a style.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from afspl_jax.data.shapes import language
from afspl_jax.data.shapes.language import Style
from afspl_jax.data.shapes.scene import Scene, cells_of, sample_scene

SLOTS = 16  # prompt positions
CONTENT = 24  # positions of the raster (16 used) or of the list
INSTRUCTION = 14
TARGET = 44
BAG = 10  # words mixed into one vector
GRID = 4  # raster cells per side
PLAIN = Style("note")


class TextBatch(NamedTuple):
  """Encoder inputs as bags of words, and the target text."""

  ids: Int[Array, "b l bag"]
  weights: Float[Array, "b l bag"]
  noise: Float[Array, "b l"]  # standard deviation added to each component
  mask: Bool[Array, "b l"]
  targets: Int[Array, "b t"]
  target_weights: Float[Array, "b t"]


def embed(
  embedding: Float[Array, "n d"], batch: TextBatch, key: Key[Array, ""]
) -> Float[Array, "b l d"]:
  """Returns the weighted sum of each bag's word embeddings, with noise."""
  x = jnp.einsum("blk,blkd->bld", jnp.asarray(batch.weights), embedding[batch.ids])
  return x + batch.noise[..., None] * jax.random.normal(key, x.shape)


class Corpus:
  """Draws samples; equal seeds give equal samples.

  Args:
    vocabulary: ids of the T5 tokenizer by piece.
  """

  def __init__(self, vocabulary: dict[str, int]):
    self.vocabulary = vocabulary

  def ids(self, text: str) -> list[int]:
    """Returns the ids of a text of known words; equals the tokenizer, but faster."""
    return [self.vocabulary[f"▁{word}"] for word in text.split()]

  def batch(self, rng: np.random.Generator, size: int) -> TextBatch:
    """Draws `size` samples."""
    length = SLOTS + CONTENT + INSTRUCTION
    arrays: dict[str, Any] = {
      "ids": np.zeros((size, length, BAG), np.int32),
      "weights": np.zeros((size, length, BAG), np.float32),
      "noise": np.zeros((size, length), np.float32),
      "mask": np.zeros((size, length), bool),
      "targets": np.zeros((size, TARGET), np.int32),
      "target_weights": np.zeros((size, TARGET), np.float32),
    }
    out: Any = TextBatch(**arrays)  # NumPy arrays, filled row by row
    for row in range(size):
      self._fill(out, row, rng)
    return out

  def _fill(self, out: Any, row: int, rng: np.random.Generator) -> None:
    scene, style = pretraining_scene(rng), language.sample_style(rng)
    instruction, target, weight = self._task(scene, style, rng)
    self._style_hint(out, row, style, rng)
    if rng.random() < 0.8:
      self._raster(out, row, scene, style, rng)
    else:
      listing = language.caption(scene, PLAIN if rng.random() < 0.5 else style, rng)
      self._words(out, row, SLOTS, self.ids(listing)[:CONTENT])
    self._words(out, row, SLOTS + CONTENT, self.ids(instruction)[:INSTRUCTION])
    ids = [*self.ids(target)[: TARGET - 1], 1]
    out.targets[row, : len(ids)] = ids
    out.target_weights[row, : len(ids)] = weight

  def _task(self, scene: Scene, style: Style, rng: np.random.Generator) -> tuple[str, str, float]:
    """Returns instruction, target, and weight per target token; short answers weigh more."""
    draw = rng.random()
    if draw < 0.55:
      options = language.CAPTION_INSTRUCTIONS
      return options[rng.integers(len(options))], language.caption(scene, style, rng), 1.0
    if draw < 0.95:
      question = language.questions(scene, style, rng)[0]
      return question.text, question.answer, 3.0
    return (
      "list all objects .",
      " , ".join(
        f"{language.noun_phrase(t, PLAIN)} {language.place_phrase(t, PLAIN)}" for t in scene.things
      ),
      1.0,
    )

  def _style_hint(self, out: Any, row: int, style: Style, rng: np.random.Generator) -> None:
    """Fills the prompt slots with a caption in `style`, with random words, or with nothing."""
    draw = rng.random()
    if draw < 0.2:
      return
    if draw < 0.75:
      words = self.ids(language.caption(pretraining_scene(rng), style, rng))
      while len(words) < SLOTS:
        words += words
      start = rng.integers(len(words) - SLOTS + 1)
      words = words[start : start + SLOTS]
    else:
      words = list(rng.integers(3, len(self.vocabulary), size=SLOTS))
    # Each slot also has some of another word, because trained prompts mix words.
    out.ids[row, :SLOTS, 0] = words
    out.weights[row, :SLOTS, 0] = rng.uniform(0.6, 1.4, size=SLOTS)
    out.ids[row, :SLOTS, 1] = rng.permutation(words)
    out.weights[row, :SLOTS, 1] = rng.uniform(0, 0.5, size=SLOTS)
    out.noise[row, :SLOTS] = rng.uniform(0, 0.5)
    out.mask[row, :SLOTS] = True

  def _raster(
    self, out: Any, row: int, scene: Scene, style: Style, rng: np.random.Generator
  ) -> None:
    """Adds each thing's words to the cells that it touches."""
    cells = slice(SLOTS, SLOTS + GRID * GRID)
    out.mask[row, cells] = True
    out.noise[row, cells] = rng.uniform(0.05, 0.6)
    # A map that is trained on all sites' texts mixes synonyms: choose one at random.
    used = np.zeros(GRID * GRID, int)
    scale = rng.uniform(0.7, 1.4)
    placed = rng.random() < 0.8
    for thing in scene.things:
      words = [
        language.COLOUR_WORDS[rng.integers(2)][thing.colour],
        language.SHAPE_WORDS[rng.integers(2)][thing.shape],
        language.SIZE_WORDS[rng.integers(3)][thing.size],
      ]
      if placed:
        place = language.PLACE_WORDS[rng.integers(3)][3 * thing.row + thing.column]
        words += [w for w in place.split() if w not in ("in", "at", "on", "the", "field")]
      ids = self.ids(" ".join(words))
      for cell in cells_of(thing, GRID):
        strength = scale * rng.uniform(0.5, 1.2)
        for i in ids:
          if used[cell] < BAG:
            out.ids[row, SLOTS + cell, used[cell]] = i
            out.weights[row, SLOTS + cell, used[cell]] = strength * rng.uniform(0.7, 1.3)
            used[cell] += 1

  def _words(self, out: Any, row: int, start: int, ids: list[int]) -> None:
    stop = start + len(ids)
    out.ids[row, start:stop, 0] = ids
    out.weights[row, start:stop, 0] = 1.0
    out.mask[row, start:stop] = True


def pretraining_scene(rng: np.random.Generator) -> Scene:
  """Draws a scene that no site has."""
  while True:
    scene = sample_scene(rng)
    if scene.split == "pretrain":
      return scene
