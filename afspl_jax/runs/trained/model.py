"""Captions and answers of a trained prompter in a few lines: `load`, and the model it returns."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from PIL import Image

from afspl_jax.data.images import as_rgb, decode_image
from afspl_jax.errors import UserError
from afspl_jax.evaluation.generate import GeneratedText, decoding_settings, generated_texts
from afspl_jax.models.captioner import Captioner, module_leaves
from afspl_jax.models.decoding import make_decoder
from afspl_jax.models.prompter.local import join_local
from afspl_jax.runs.trained.trained_prompter import TrainedPrompter, open_trained_prompter
from afspl_jax.training.mesh import make_mesh, replicate
from afspl_jax.types import Batch

ImageLike = Image.Image | Path | str  # an image, or its file


class ImageQuestion(NamedTuple):
  """An image and a question about it; without a question, a caption is generated."""

  image: ImageLike
  question: str = ""


class Model:
  """Writes captions and answers questions; made by `load`.

  Every batch is padded to one size, so that the model compiles once, and the text for an image does
  not depend on the rest of the batch.

  Args:
    trained: the prompter and its frozen models.
    batch_size: images at a time, rounded up to a multiple of the number of devices.

  Raises:
    UserError: the batch size or a decoding setting is out of range.
  """

  def __init__(self, trained: TrainedPrompter, batch_size: int = 8):
    if batch_size < 1:
      raise UserError(f"batch_size: expected at least 1; got {batch_size}")
    mesh = make_mesh()
    self.config, self.round, self.site = trained.config, trained.round, trained.site
    self.batch_size = -(-batch_size // mesh.size) * mesh.size
    self._pair = trained.pair
    self._params = replicate(join_local(trained.shared, trained.local), mesh)
    self._frozen = replicate(module_leaves(self._pair.language_model), mesh)
    captioner = Captioner(trained.prompter, self._pair.language_model)
    self._decode = make_decoder(captioner, decoding_settings(self.config.eval), mesh)
    # The questions of the last batch, with their features.
    self._questions: tuple[list[str], np.ndarray] | None = None

  def caption(self, images: Sequence[ImageLike]) -> list[str]:
    """Writes a caption for each image.

    Args:
      images: files, or PIL images in mode "RGB" and of any size.

    Raises:
      UserError: a file is not an image.
    """
    return [found.text for found in self.predict([ImageQuestion(image) for image in images])]

  def answer(self, image: ImageLike, question: str) -> str:
    """Answers a question about an image.

    Raises:
      UserError: the question is empty, or the file is not an image.
    """
    if not question.strip():
      raise UserError("question: expected some words; got an empty text")
    (found,) = self.predict([ImageQuestion(image, question)])
    return found.text

  def predict(self, questions: Sequence[ImageQuestion]) -> list[GeneratedText]:
    """Captions and answers in the order of the questions, with the prompts that were used.

    Raises:
      UserError: a file is not an image.
    """
    out = []
    for start in range(0, len(questions), self.batch_size):
      part = questions[start : start + self.batch_size]
      decoded = self._decode(self._params, self._frozen, self._batch(part))
      out += generated_texts(decoded, len(part), self._pair.tokenizer)
    return out

  def _batch(self, part: Sequence[ImageQuestion]) -> Batch:
    pair, size, data = self._pair, self.batch_size, self.config.data
    seen = pair.encoder.encode_uncached([_opened(one.image) for one in part], size)
    questions = [one.question or data.caption_instruction for one in part]
    distinct = sorted(set(questions))
    row = [distinct.index(question) for question in questions]
    _, mask = pair.tokenizer.tokenize(distinct, data.instruction_length + 1)
    for question, tokens in zip(distinct, mask.sum(axis=1), strict=True):
      if tokens > data.instruction_length:
        warnings.warn(
          f"cut after {data.instruction_length} tokens, as in training: {question!r}", stacklevel=4
        )
    ids, mask = pair.tokenizer.tokenize(distinct, data.instruction_length)
    text = self._features(distinct)
    nothing = np.zeros((size, 1), np.int32)
    arrays: dict[str, Any] = {
      "tokens": _padded(seen.tokens, size),
      "image": _padded(seen.joint, size),
      "text": _padded(text[row], size),
      "instruction": _padded(ids[row], size),
      "instruction_mask": _padded(mask[row], size),
      "targets": nothing,
      "targets_mask": nothing.astype(bool),
      "personal": np.full(size, bool(self.site)),
      "caption": np.zeros((size, seen.joint.shape[1]), seen.joint.dtype),
    }
    return Batch(**{name: jnp.asarray(array) for name, array in arrays.items()})

  def _features(self, questions: list[str]) -> np.ndarray:
    """CLIP features of the questions; most batches have those of the batch before."""
    before = self._questions
    if before is None or before[0] != questions:
      before = self._questions = questions, self._pair.encoder.directions(questions, keep=False)
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
    run: the folder of a finished or running run, a file or folder of `afspl export`, or the name
      of such a folder's repository on the Hugging Face hub.
    round: a round with a checkpoint; by default the newest.
    site: the site whose local prompt is used; by default none: the global model.
    own: the run folder at that site, if it is not `run`.
    clip: the folder of CLIP, if it is not the one in the run's config.
    t5: the folder of T5, if it is not the one in the run's config.
    batch_size: images at a time.
    **generation: changes to the run's decoding settings: max_tokens, min_tokens, beams,
      length_penalty, no_repeat_ngram.

  Raises:
    UserError: something is missing or damaged, or the parts do not belong together.
  """
  folders = {"clip": clip, "t5": t5}
  trained = open_trained_prompter(Path(run), round, site, own, folders, generation)
  return Model(trained, batch_size)


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
  """The rows, padded to `size` with copies of the first."""
  return np.concatenate([rows, np.repeat(rows[:1], size - len(rows), axis=0)])


def _opened(image: ImageLike) -> Image.Image:
  return as_rgb(image) if isinstance(image, Image.Image) else decode_image(Path(image), str(image))
