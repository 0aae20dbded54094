"""Examples as the arrays of a training step."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from afspl_jax.config.experiment import Data
from afspl_jax.data.feature_cache import copy_rows
from afspl_jax.data.features import FeatureEncoder
from afspl_jax.models.huggingface.preprocessing import Tokenizer
from afspl_jax.types import Batch, Example, Source

_PAD_TO = 2  # texts are padded to a multiple of this, so that splits tend to share a program


class Split:
  """One split with its features and token ids.

  Args:
    source: the examples.
    encoder: gives the features of images and texts.
    tokenizer: the language model's.
    config: lengths, and the instruction for images without a question.
    contrast: whether batches hold the captions' features.

  Raises:
    UserError: the feature cache cannot be written.
  """

  def __init__(
    self,
    source: Source,
    encoder: FeatureEncoder,
    tokenizer: Tokenizer,
    config: Data,
    *,
    contrast: bool = False,
  ):
    self.examples: list[Example] = [source[i] for i in range(len(source))]
    self.images = encoder.images(source)
    row_of = {key: row for row, key in enumerate(source.images())}
    self._image_row = np.array([row_of[example.image] for example in self.examples])

    asked = [example.question or config.caption_instruction for example in self.examples]
    distinct = sorted(set(asked))
    position = {text: i for i, text in enumerate(distinct)}
    self._asked = np.array([position[text] for text in asked])
    self._text = encoder.directions(distinct)
    self._instruction = _trimmed(*tokenizer.tokenize(distinct, config.instruction_length))

    # Each distinct target once, captions before answers. So the features of captions belong to the
    # first targets, and a caption that is also an answer is two targets.
    texts = [(bool(e.question), text) for e in self.examples for text in e.references]
    targets = {target: i for i, target in enumerate(sorted(set(texts)))}
    self._target_row = np.array([targets[target] for target in texts])
    self._targets = _trimmed(
      *tokenizer.targets([text for _, text in targets], config.target_length)
    )
    captions = [text for answer, text in targets if contrast and not answer]
    self._captions = encoder.directions(captions)
    counts = np.array([len(example.references) for example in self.examples])
    self._first_reference = np.cumsum(counts) - counts
    self._num_references = counts

  def __len__(self) -> int:
    return len(self.examples)

  def with_targets_of(self, others: Int[np.ndarray, " examples"]) -> "Split":
    """Gives the same images and instructions, with the targets of other examples.

    Args:
      others: for each example, the index of the one whose references are its targets.
    """
    out = copy.copy(self)
    out._first_reference = self._first_reference[others]
    out._num_references = self._num_references[others]
    return out

  def batch(
    self,
    indices: Int[np.ndarray, " rows"],
    size: int,
    reference: Int[np.ndarray, " rows"] | None = None,
    personal: Bool[np.ndarray, " rows"] | bool = False,
  ) -> Batch:
    """Gathers examples into a batch.

    Args:
      indices: of at most `size` examples.
      size: rows of the batch; those beyond the examples are masked.
      reference: which reference is the target, modulo their number; None takes the first.
      personal: which examples may use the client's local prompt.
    """
    rows = np.zeros(size, int)
    rows[: len(indices)] = indices
    which = np.zeros(size, int)
    if reference is not None:
      which[: len(indices)] = reference % self._num_references[indices]
    image, asked = self._image_row[rows], self._asked[rows]
    target = self._target_row[self._first_reference[rows] + which]
    ids, mask = self._targets
    real = np.arange(size) < len(indices)
    personal_rows = np.zeros(size, bool)
    personal_rows[: len(indices)] = personal
    captioned = real & (target < len(self._captions))
    caption = np.zeros((size, self._captions.shape[1]), self._captions.dtype)
    caption[captioned] = self._captions[target[captioned]]
    arrays: dict[str, Any] = {
      "tokens": copy_rows(self.images.tokens, image),
      "image": copy_rows(self.images.joint, image),
      "text": self._text[asked],
      "instruction": self._instruction[0][asked],
      "instruction_mask": self._instruction[1][asked],
      "targets": ids[target],
      "targets_mask": mask[target] & real[:, None],
      "personal": personal_rows,
      "caption": caption,
    }
    return Batch(**arrays)

  def inputs(self, indices: Sequence[int], see_image: bool = True) -> Int[np.ndarray, " rows"]:
    """A number for what a model reads of each example; equal ones have equal inputs.

    Args:
      indices: of the examples.
      see_image: False counts only the instruction.
    """
    rows = np.asarray(indices, int)
    image = self._image_row[rows] if see_image else 0
    return image * len(self._text) + self._asked[rows]

  def target_lengths(self, indices: Sequence[int]) -> Int[np.ndarray, " rows"]:
    """Tokens of each example's first reference."""
    first = self._target_row[self._first_reference[np.asarray(indices, int)]]
    return self._targets[1][first].sum(axis=1)

  def joint(self, indices: Sequence[int]) -> Float[np.ndarray, "rows f"]:
    """The joint feature of each example's image."""
    return copy_rows(self.images.joint, self._image_row[list(indices)])

  def joint_of_images(self, indices: Sequence[int]) -> Float[np.ndarray, "images f"]:
    """The joint feature of each image of these examples, once, however many examples it has."""
    return copy_rows(self.images.joint, np.unique(self._image_row[list(indices)]))

  def local_batches(
    self,
    indices: Int[np.ndarray, " rows"],
    steps: int,
    size: int,
    rng: np.random.Generator,
    personal: float = 1.0,
  ) -> Batch:
    """A client's batches for one round, stacked on a leading axis of `steps`.

    Examples come in random order, and none comes again before all have come. Each time it has a
    random reference. Only `rng` decides the draws, so a resumed run draws the same.

    Args:
      indices: of the client's examples.
      steps: number of batches.
      size: rows of each.
      rng: draws the order, the references and the personal rows, in this order.
      personal: share of the rows that may use the client's local prompt.
    """
    passes = -(-steps * size // len(indices))
    order = np.concatenate([rng.permutation(indices) for _ in range(passes)])[: steps * size]
    reference = rng.integers(2**31, size=steps * size)
    personal_rows = rng.random(steps * size) < personal
    flat = self.batch(order, steps * size, reference, personal_rows)
    return Batch(*(part.reshape(steps, size, *part.shape[1:]) for part in flat))

  def sampled_batches(
    self,
    sampled: Bool[np.ndarray, "steps rows"],
    indices: Int[np.ndarray, " rows"],
    size: int,
    rng: np.random.Generator,
    personal: float = 1.0,
  ) -> Batch:
    """As `local_batches`, of the examples that were sampled for each step.

    Args:
      sampled: which of the examples are in the batch of each step.
      indices: of the client's examples.
      size: rows of each batch; those beyond the sampled examples are masked.
      rng: draws the references and the personal rows.
      personal: share of the rows that may use the client's local prompt.
    """
    batches = []
    for step in sampled:
      rows = indices[step]
      reference = rng.integers(2**31, size=len(rows))
      batches.append(self.batch(rows, size, reference, rng.random(len(rows)) < personal))
    return jax.tree.map(lambda *parts: np.stack(parts), *batches)

  def in_order(
    self, indices: Sequence[int], size: int, personal: bool = False
  ) -> Iterator[tuple[Int[np.ndarray, " rows"], Batch]]:
    """Batches of `indices` in their order, each with its indices; the last one is filled up."""
    for start in range(0, len(indices), size):
      part = np.asarray(indices[start : start + size])
      yield part, self.batch(part, size, personal=personal)


def _trimmed(
  ids: Int[np.ndarray, "texts l"], mask: Bool[np.ndarray, "texts l"]
) -> tuple[Int[np.ndarray, "texts short"], Bool[np.ndarray, "texts short"]]:
  """Cuts the padding that all texts have; a step takes as long for padding as for words."""
  longest = int(mask.sum(axis=1).max(initial=0))
  length = -(-longest // _PAD_TO) * _PAD_TO
  return ids[:, :length].copy(), mask[:, :length].copy()
