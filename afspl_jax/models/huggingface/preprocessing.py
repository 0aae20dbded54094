"""Texts to token ids and images to pixels, as the files of a checkpoint define.

Texts use transformers, which is imported inside functions, so that importing this package stays
fast. Its tokenizers do not need PyTorch.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from afspl_jax.errors import UserError
from afspl_jax.models.huggingface.image_settings import CLIP, ImageDefaults, ImageSettings
from afspl_jax.models.huggingface.tokenizer_files import (
  control_tokens,
  encode_as_text,
  tokenizer_class,
)

_TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
_CONTROL_LENGTH = 64  # ids that encode the name of a control token
_IMAGE_FILE = "preprocessor_config.json"


class Tokenizer:
  """The tokenizer of a checkpoint.

  A text is only text: "</s>" in it is four characters and not the end token.

  Attributes:
    pad_id: pads rows to their length; it may equal `eos_id`, so use the mask.
    eos_id: ends every target.
    vocabulary: id of each piece.
    vocab_size: number of ids of the tokenizer; the model's vocabulary may be larger.
  """

  def __init__(self, folder: str | Path, *, continued: bool = False):
    """Reads the tokenizer's files, without network access.

    Args:
      folder: has tokenizer.json, or vocab.json and merges.txt; ByT5's tokenizer needs no file.
      continued: whether the model is decoder-only, so that a target continues what it reads. Then
        what it reads ends with a line break in place of the end token.

    Raises:
      UserError: it has neither, the tokenizer is that of another model or does not end texts with
        an end token, or a text can contain its control tokens.
    """
    folder = Path(folder)
    kind = tokenizer_class(folder)
    needs_files = getattr(kind, "vocab_files_names", True)
    if needs_files and not any(
      all((folder / name).is_file() for name in names) for names in _TOKENIZER_FILES
    ):
      raise UserError(
        f"{folder}: expected the files of a tokenizer, tokenizer.json, or vocab.json and"
        f" merges.txt; got {_listing(folder)}. Download them with the checkpoint; a spiece.model"
        " alone is not read."
      )
    try:
      # A folder may name code in it, which must not run.
      self._tokenizer = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
      self._tokenizer.truncation_side = "right"  # whatever the files say: a question starts left
      self.vocab_size: int = len(self._tokenizer)
      self.vocabulary: dict[str, int] = self._tokenizer.get_vocab()
      self._known = np.array(list(self.vocabulary.values()))
      encode_as_text(self._tokenizer)
      self.eos_id: int = self._tokenizer.eos_token_id
      self.pad_id: int = self._tokenizer.pad_token_id
      self._break: list[int] | None = None
      if continued:
        self._break, self.pad_id = self._line_break(), self._end_token()
      (row, empty), (mask, ends) = self.targets(["a", ""], 8)
    except Exception as error:  # damaged files make transformers raise any error
      raise UserError(
        f"{folder}: expected the files of a tokenizer; got {type(error).__name__}:"
        f" {str(error)[:300]}. Download them again with the checkpoint."
      ) from error
    ids = row[mask].tolist()
    if self.pad_id is None or self.eos_id is None or ids[-1:] != [self.eos_id]:
      raise UserError(
        f"{folder}: expected a tokenizer that ends texts with its end token and has a padding"
        f' token; got ids {ids} for "a", end {self.eos_id}, padding {self.pad_id}. Take the'
        " tokenizer files of the checkpoint."
      )
    self._check_control_tokens(folder, empty[ends])

  def check_model(self, what: str, vocabulary: int, eos_id: int | None, pad_id: int | None) -> None:
    """Checks that a model understands the ids of this tokenizer.

    Args:
      what: the model, for the message.
      vocabulary: number of the model's ids.
      eos_id: the id that ends a text for the model; None: the tokenizer's highest id.
      pad_id: the id that pads texts for the model; None: any, as the mask hides it.

    Raises:
      UserError: it does not.
    """
    largest = max(self.vocabulary.values())
    if largest >= vocabulary:
      raise UserError(
        f"{what}: expected a tokenizer with ids below vocab_size, {vocabulary}; got {largest}."
        " Take all files of one checkpoint."
      )
    for role, wanted, got in (
      ("eos_token_id", largest if eos_id is None else eos_id, self.eos_id),
      ("pad_token_id", self.pad_id if pad_id is None else pad_id, self.pad_id),
    ):
      if wanted != got:
        raise UserError(
          f"{what}: expected a tokenizer with {role} {wanted}, as the config.json has it; got"
          f" {got}. Take all files of one checkpoint."
        )

  def _check_control_tokens(self, folder: Path, frame: Int[np.ndarray, " ids"]) -> None:
    """Raises an error if a text can contain a control token.

    Args:
      folder: for the message.
      frame: the ids of an empty text.
    """
    control = control_tokens(self._tokenizer)
    ids, mask = self.tokenize(list(control.values()), _CONTROL_LENGTH)
    if self._tokenizer.unk_token_id not in frame:  # a character that is not known is still text
      control.pop(self._tokenizer.unk_token_id, None)
    found = (np.isin(ids, list(control)) & mask).sum(axis=1)
    if found.size and found.max() > np.isin(frame, list(control)).sum():
      raise UserError(
        f"{folder}: expected a tokenizer that can encode the names of its control tokens as text;"
        f" got control tokens for {list(control.values())[int(found.argmax())]!r}. Take another"
        " checkpoint."
      )

  def tokenize(
    self, texts: Sequence[str], length: int
  ) -> tuple[Int[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]:
    """Turns texts that a model reads into rows of one length, so that one program serves all.

    Args:
      texts: any number of them.
      length: of a row; a longer text is cut before its end token or line break.

    Returns:
      int32 ids, padded on the right, and a mask that is true at tokens.
    """
    if self._break is not None:
      return self._rows(texts, length, self._break)
    if not texts:
      return np.zeros((0, length), np.int32), np.zeros((0, length), bool)
    rows = self._tokenizer(
      list(texts),
      padding="max_length",
      truncation=True,
      max_length=length,
      padding_side="right",
      return_tensors="np",
    )
    return rows["input_ids"].astype(np.int32), rows["attention_mask"].astype(bool)

  def targets(
    self, texts: Sequence[str], length: int
  ) -> tuple[Int[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]:
    """As `tokenize`, of texts that a model writes: they end with the end token."""
    if self._break is None:
      return self.tokenize(texts, length)
    return self._rows(texts, length, [self.eos_id])

  def words(self, text: str) -> list[int]:
    """The ids of a text alone, without tokens before and after it."""
    return self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

  def _rows(
    self, texts: Sequence[str], length: int, ends: list[int]
  ) -> tuple[Int[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]:
    """Rows of the texts' words, cut and followed by `ends`."""
    ids = np.full((len(texts), length), self.pad_id, np.int32)
    mask = np.zeros(ids.shape, bool)
    for i, text in enumerate(texts):
      row = [*self.words(text)[: length - len(ends)], *ends]
      ids[i, : len(row)], mask[i, : len(row)] = row, True
    return ids, mask

  def _end_token(self) -> int:
    """The end token, which pads where a mask hides padding: few of these models have another."""
    if self.eos_id is None:
      raise ValueError("tokenizer_config.json names no eos_token")
    return self.eos_id

  def _line_break(self) -> list[int]:
    """The ids of a line break after a word; none if the tokenizer has no token for it."""
    ids = self.words("a\n")[len(self.words("a")) :]
    return [] if self._tokenizer.unk_token_id in ids else ids

  def decode(self, ids: Int[np.ndarray, "b l"]) -> list[str]:
    """Turns rows of ids into texts, up to each row's end token and without special tokens."""
    ends = (np.append(row, self.eos_id) == self.eos_id for row in ids)
    rows = [row[: int(np.argmax(end))].tolist() for row, end in zip(ids, ends, strict=True)]
    return self._tokenizer.batch_decode(
      rows, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )

  def count_unknown(self, ids: Int[np.ndarray, "b l"]) -> Int[np.ndarray, " b"]:
    """Counts the ids of each row, up to its end token, that are not of this tokenizer.

    A model may have a larger vocabulary than its tokenizer, to make its matrices divisible: T5's
    has 32,128 ids, and its tokenizer 32,100. `decode` leaves such ids out.
    """
    before = np.cumsum(ids == self.eos_id, axis=1) == 0
    return (before & ~np.isin(ids, self._known)).sum(axis=1)


class ImageProcessor:
  """The image processor of a checkpoint: resize, crop, scale, normalise.

  Uses Pillow alone and gives exactly the numbers of transformers' CLIPImageProcessorPil and the
  processors like it, whose import is slow and which convert the image to an array and back between
  their steps.

  Attributes:
    levels: float32 value of each of the 256 levels of a colour, by channel.
    size: height and width of every cropped image.
  """

  levels: Float[np.ndarray, "256 3"]

  def __init__(self, folder: str | Path, defaults: ImageDefaults = CLIP):
    """Reads the processor's settings, without network access.

    Args:
      folder: has preprocessor_config.json.
      defaults: of the model.

    Raises:
      UserError: the file is missing or belongs to another type of model, or a setting has a value
        that the model's processor does not allow.
    """
    folder = Path(folder)
    path = folder / _IMAGE_FILE
    if defaults.needs_file and not path.is_file():
      raise UserError(
        f"{folder}: expected {_IMAGE_FILE}; got {_listing(folder)}. Download it with the"
        " checkpoint."
      )
    settings = ImageSettings(path, defaults)
    self._resample = settings.resample()
    self._short, self._resized = settings.resized()
    self._cropped = settings.cropped()
    self.levels = settings.levels()
    size = self._cropped or self._resized
    if size is None:
      raise settings.error("size", "a height and a width where images are not cropped")
    self.size = size

  def crop(self, image: Image.Image) -> UInt8[np.ndarray, "h x 3"]:
    """Resizes and crops an image of any size and mode; `levels` gives the values of its bytes."""
    image = _as_rgb(image)
    width, height = image.size
    if self._short is not None:
      # The longer side is rounded down, as in transformers.
      long = int(self._short * max(width, height) / min(width, height))
      width, height = (self._short, long) if width <= height else (long, self._short)
    elif self._resized is not None:
      height, width = self._resized
    if self._resample is not None:
      image = image.resize((width, height), self._resample)
    if self._cropped is not None:
      high, wide = self._cropped
      left, top = (width - wide) // 2, (height - high) // 2
      image = image.crop((left, top, left + wide, top + high))  # black beyond its borders
    return np.asarray(image)

  def __call__(self, images: Sequence[Image.Image]) -> Float[np.ndarray, "b h x 3"]:
    """Turns images of any size and mode into float32 pixels for the vision encoder."""
    return self.levels[np.stack([self.crop(image) for image in images]), np.arange(3)]


def _as_rgb(image: Image.Image) -> Image.Image:
  """Converts to RGB; transparent pixels become white, as in transformers."""
  if "A" in image.getbands() or image.info.get("transparency") is not None:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    image = Image.alpha_composite(white, image)
  return image if image.mode == "RGB" else image.convert("RGB")


def _listing(folder: Path) -> str:
  if not folder.is_dir():
    return "no such folder"
  return ", ".join(sorted(path.name for path in folder.iterdir())) or "an empty folder"
