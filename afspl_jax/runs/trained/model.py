"""A trained prompter with its two frozen models, for captions and answers in a few lines."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from PIL import Image

from afspl_jax.data.images import decode
from afspl_jax.errors import UserError
from afspl_jax.evaluation.generate import Generated, decoding, generated
from afspl_jax.models.captioner import Captioner, leaves
from afspl_jax.models.decoding import make_decoder
from afspl_jax.models.prompter.local import join
from afspl_jax.runs.trained.trained_model import Trained, open_trained
from afspl_jax.training.train_step import make_mesh, replicate
from afspl_jax.types import Batch

Photo = Image.Image | Path | str  # an image, or its file


class Asked(NamedTuple):
  """An image, and what is asked of it; without a question, a caption."""

  image: Photo
  question: str = ""


class Model:
  """Writes captions and answers questions; made by `load`.

  Every batch is filled up to one size, so that a model compiles once, and says the same of an
  image whatever else it is asked.

  Args:
    trained: the prompter and its frozen models.
    batch_size: images at a time, rounded up to a multiple of the devices.

  Raises:
    UserError: no batch, or a setting that no text can be generated with.
  """

  def __init__(self, trained: Trained, batch_size: int = 8):
    if batch_size < 1:
      raise UserError(f"batch_size: expected at least 1; got {batch_size}")
    mesh = make_mesh()
    self.config, self.round, self.site = trained.config, trained.round, trained.site
    self.batch_size = -(-batch_size // mesh.size) * mesh.size
    self._pair = trained.pair
    self._params = replicate(join(trained.shared, trained.own), mesh)
    self._frozen = replicate(leaves(self._pair.language_model), mesh)
    captioner = Captioner(trained.prompter, self._pair.language_model)
    self._decode = make_decoder(captioner, decoding(self.config.eval), mesh)
    self._texts: tuple[list[str], np.ndarray] | None = None  # the last batch's, with directions

  def caption(self, images: Sequence[Photo]) -> list[str]:
    """Describes images, each in one text.

    Args:
      images: files, or images of PIL; "RGB" of any size.

    Raises:
      UserError: a file that is no image.
    """
    return [said.text for said in self.predict([Asked(image) for image in images])]

  def answer(self, image: Photo, question: str) -> str:
    """Answers a question about an image.

    Raises:
      UserError: no question, or a file that is no image.
    """
    if not question.strip():
      raise UserError("question: expected some words; got none")
    (said,) = self.predict([Asked(image, question)])
    return said.text

  def predict(self, asked: Sequence[Asked]) -> list[Generated]:
    """Captions and answers in any order, with the prompts that each was made with.

    Raises:
      UserError: a file that is no image.
    """
    out = []
    for start in range(0, len(asked), self.batch_size):
      part = asked[start : start + self.batch_size]
      decoded = self._decode(self._params, self._frozen, self._batch(part))
      out += generated(decoded, len(part), self._pair.tokenizer)
    return out

  def _batch(self, asked: Sequence[Asked]) -> Batch:
    pair, size, data = self._pair, self.batch_size, self.config.data
    seen = pair.encoder.look([_opened(one.image) for one in asked], size)
    questions = [one.question or data.caption_instruction for one in asked]
    distinct = sorted(set(questions))
    row = [distinct.index(question) for question in questions]
    _, mask = pair.tokenizer.tokenize(distinct, data.instruction_length + 1)
    for question, tokens in zip(distinct, mask.sum(axis=1), strict=True):
      if tokens > data.instruction_length:
        warnings.warn(
          f"cut after {data.instruction_length} tokens, as in training: {question!r}", stacklevel=4
        )
    ids, mask = pair.tokenizer.tokenize(distinct, data.instruction_length)
    text = self._directions(distinct)
    nothing = np.zeros((size, 1), np.int32)
    arrays: dict[str, Any] = {
      "tokens": _filled(seen.tokens, size),
      "image": _filled(seen.joint, size),
      "text": _filled(text[row], size),
      "instruction": _filled(ids[row], size),
      "instruction_mask": _filled(mask[row], size),
      "targets": nothing,
      "targets_mask": nothing.astype(bool),
      "personal": np.full(size, bool(self.site)),
      "caption": np.zeros((size, seen.joint.shape[1]), seen.joint.dtype),
    }
    return Batch(**{name: jnp.asarray(array) for name, array in arrays.items()})

  def _directions(self, texts: list[str]) -> np.ndarray:
    """CLIP's of the questions; a batch mostly asks what the one before it did."""
    before = self._texts
    if before is None or before[0] != texts:
      before = self._texts = texts, self._pair.encoder.directions(texts, keep=False)
    return before[1]


def load(
  run: Path | str,
  *,
  round: int | None = None,
  site: str = "",
  own: Path | str = "",
  clip: str = "",
  t5: str = "",
  batch_size: int = 8,
  **generation: Any,
) -> Model:
  """Opens a trained prompter.

  Args:
    run: the folder of a finished or running run, or a file of `afspl export`.
    round: one whose checkpoint is kept; by default the newest.
    site: whose own prompt is used; by default none, and the prompter is the global one.
    own: the run's folder at that site, if it is another than `run`.
    clip: where the CLIP lies, if not where the run found it.
    t5: where the T5 lies.
    batch_size: images at a time.
    **generation: other than in the run's config: max_tokens, min_tokens, beams, length_penalty,
      no_repeat_ngram.

  Raises:
    UserError: something is missing, damaged, or does not belong together.
  """
  given = {"clip": clip, "t5": t5}
  trained = open_trained(Path(run), round, site, own, given, generation)
  return Model(trained, batch_size)


def _filled(rows: np.ndarray, size: int) -> np.ndarray:
  """As many rows as a batch has, by copies of the first."""
  return np.concatenate([rows, np.repeat(rows[:1], size - len(rows), axis=0)])


def _opened(image: Photo) -> Image.Image:
  return image if isinstance(image, Image.Image) else decode(Path(image), str(image))
