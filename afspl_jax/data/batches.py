"""From examples to the arrays that a step takes."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from afspl_jax.backbones.processing import Tokenizer
from afspl_jax.config import Data
from afspl_jax.data.features import FeatureEncoder
from afspl_jax.types import Batch, Example, Source


class Split:
  """One split with its features and token ids.

  Args:
    source: the examples.
    encoder: gives CLIP's features of images and instructions.
    tokenizer: T5's.
    config: lengths, and the instruction for images without a question.
  """

  def __init__(self, source: Source, encoder: FeatureEncoder, tokenizer: Tokenizer, config: Data):
    self.examples: list[Example] = [source[i] for i in range(len(source))]
    self.images = encoder.images(source)
    row_of = {key: row for row, key in enumerate(source.images())}
    self._image_row = np.array([row_of[example.image] for example in self.examples])

    asked = [example.question or config.caption_instruction for example in self.examples]
    distinct = sorted(set(asked))
    position = {text: i for i, text in enumerate(distinct)}
    self._asked = np.array([position[text] for text in asked])
    features = encoder.texts(distinct)
    self._text = np.stack([features[text] for text in distinct])
    self._instruction = tokenizer.tokenize(distinct, config.instruction_length)

    references = [text for example in self.examples for text in example.references]
    self._targets = tokenizer.tokenize(references, config.target_length)
    counts = np.array([len(example.references) for example in self.examples])
    self._first_reference = np.cumsum(counts) - counts
    self._num_references = counts

  def __len__(self) -> int:
    return len(self.examples)

  def batch(
    self,
    indices: Int[np.ndarray, " rows"],
    size: int,
    reference: Int[np.ndarray, " rows"] | None = None,
  ) -> Batch:
    """Gathers examples into a batch.

    Args:
      indices: of at most `size` examples.
      size: rows of the batch; those beyond the examples count nowhere.
      reference: which reference is the target, modulo their number; None takes the first.
    """
    rows = np.zeros(size, int)
    rows[: len(indices)] = indices
    which = np.zeros(size, int)
    if reference is not None:
      which[: len(indices)] = reference % self._num_references[indices]
    image, asked = self._image_row[rows], self._asked[rows]
    target = self._first_reference[rows] + which
    ids, mask = self._targets
    real = (np.arange(size) < len(indices))[:, None]
    arrays: dict[str, Any] = {
      "tokens": np.asarray(self.images.tokens[image]),
      "image": np.asarray(self.images.joint[image]),
      "text": self._text[asked],
      "instruction": self._instruction[0][asked],
      "instruction_mask": self._instruction[1][asked],
      "targets": ids[target],
      "targets_mask": mask[target] & real,
    }
    return Batch(**arrays)

  def local_batches(
    self, indices: Int[np.ndarray, " rows"], steps: int, size: int, rng: np.random.Generator
  ) -> Batch:
    """A client's batches for one round, stacked on a leading axis of `steps`.

    Examples come in random order, all of them before any comes again; each time with a reference
    at random. What is drawn follows from `rng` alone, so a resumed run draws the same.
    """
    passes = -(-steps * size // len(indices))
    order = np.concatenate([rng.permutation(indices) for _ in range(passes)])[: steps * size]
    reference = rng.integers(2**31, size=steps * size)
    flat = self.batch(order, steps * size, reference)
    return Batch(*(part.reshape(steps, size, *part.shape[1:]) for part in flat))

  def in_order(
    self, indices: Sequence[int], size: int
  ) -> Iterator[tuple[Int[np.ndarray, " rows"], Batch]]:
    """Batches of `indices` in their order, the last one filled up, with the rows that count."""
    for start in range(0, len(indices), size):
      part = np.asarray(indices[start : start + size])
      yield part, self.batch(part, size)
