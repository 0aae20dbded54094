"""CLIP features: what was encoded once by the frozen encoder is read from disk ever after.

Measured in PyTorch on one CPU core with ViT-B/32 and flan-t5-small: a round takes half as long.
"""

import contextlib
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float
from PIL import Image
from tqdm import tqdm

from afspl_jax.backbones.clip import Clip
from afspl_jax.backbones.processing import ImageProcessor, Tokenizer
from afspl_jax.errors import UserError
from afspl_jax.types import Source

_WORDS = 1000  # of the vocabulary, evenly spaced, for its middle
_BATCH = 64  # images or texts encoded at a time
_SORTED = 64 * _BATCH  # texts that are sorted by length at a time
_PAD_TO = 16  # texts are padded to a multiple of this: few programs, little padding


class ImageFeatures(NamedTuple):
  """Of every image of a split, in its order; memory-mapped."""

  tokens: Float[np.ndarray, "images v w"]
  joint: Float[np.ndarray, "images f"]


class FeatureEncoder:
  """Encodes with one frozen CLIP.

  Args:
    clip: whose features are taken.
    processor: of the same checkpoint.
    tokenizer: of the same checkpoint.
    fingerprint: of the checkpoint; names the cache, so that no other's features are ever read.
    cache: folder to keep features in.

  Attributes:
    config: CLIP's sizes.
  """

  def __init__(
    self,
    clip: Clip,
    processor: ImageProcessor,
    tokenizer: Tokenizer,
    fingerprint: str,
    cache: Path,
  ):
    graph, self._state = nnx.split(clip)
    self.config, self._fingerprint, self._cache = clip.config, fingerprint, cache
    self._processor, self._tokenizer = processor, tokenizer
    self._image = jax.jit(lambda state, pixels: nnx.merge(graph, state).encode_image(pixels))
    self._text = jax.jit(lambda state, ids, mask: nnx.merge(graph, state).encode_text(ids, mask))
    self._dtype = np.dtype(clip.vision.dtype)

  def images(self, source: Source) -> ImageFeatures:
    """Features of all images of `source`, from the cache if they are there.

    Raises:
      UserError: the cache cannot be written.
    """
    rows, vision = len(source.images()), self.config.vision
    shapes = {
      "tokens": (rows, 1 + vision.num_patches, vision.width),
      "joint": (rows, self.config.joint_width),
    }
    return ImageFeatures(**self._cached(source.fingerprint, shapes, self._encode_images(source)))

  def texts(self, texts: Sequence[str], *, keep: bool = True) -> Float[np.ndarray, "texts f"]:
    """Feature of each text, from the cache if just these texts, in this order, are there.

    Of instructions, for the prompter; of captions, for the contrastive loss and scores alone.

    Args:
      texts: any number of them.
      keep: False neither reads nor writes the cache.

    Raises:
      UserError: the cache cannot be written.
    """
    if not texts:
      return np.zeros((0, self.config.joint_width), self._dtype)
    if not keep:
      return np.concatenate([part["texts"] for part in self._encode_texts(texts)])
    name = "texts " + hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()
    shapes = {"texts": (len(texts), self.config.joint_width)}
    return self._cached(name, shapes, self._encode_texts(texts))["texts"]

  def directions(self, texts: Sequence[str], *, keep: bool = True) -> Float[np.ndarray, "texts f"]:
    """Unit vectors (float32) to the texts from the middle of CLIP's vocabulary.

    CLIP's text features lie in a narrow cone (Liang et al. 2022, "Mind the Gap", sec. 2), in which
    two questions are nearly one: "what colour is the star ?" and "how many shapes are there ?" have
    a cosine of .98, and of .22 from the mean of the vocabulary's own words. That needs no site's
    data, and is the same at all. Ten natural sites, 12 rounds, one seed: VQA accuracy .60 instead
    of .52.

    Args:
      texts: any number of them.
      keep: False leaves no trace of them in the cache.

    Raises:
      UserError: the cache cannot be written.
    """
    return _unit(_unit(self.texts(texts, keep=keep)) - self._middle)

  @functools.cached_property
  def _middle(self) -> Float[np.ndarray, " f"]:
    """The mean direction of the vocabulary's words."""
    pieces = np.linspace(0, self._tokenizer.vocab_size - 1, _WORDS).astype(np.int32)
    words = {word.strip() for word in self._tokenizer.decode(np.unique(pieces)[:, None])}
    return _unit(self.texts(sorted(words - {""}))).mean(axis=0)

  def look(self, images: Sequence[Image.Image], rows: int = _BATCH) -> ImageFeatures:
    """Features of at most `rows` images, which are not kept.

    Each number of rows is a program of its own, and is filled up.
    """
    pixels = _padded(self._processor(images), rows)
    tokens, joint = self._image(self._state, pixels)
    return ImageFeatures(np.asarray(tokens)[: len(images)], np.asarray(joint)[: len(images)])

  def _encode_images(self, source: Source) -> Iterator[dict[str, np.ndarray]]:
    keys = source.images()
    for start in tqdm(range(0, len(keys), _BATCH), desc="CLIP image features", unit="batch"):
      found = self.look([source.load_image(key) for key in keys[start : start + _BATCH]])
      yield found._asdict()

  def _encode_texts(self, texts: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
    starts = range(0, len(texts), _SORTED)
    for start in tqdm(starts, desc="CLIP text features", unit="batch", delay=2):
      ids, mask = self._tokenizer.tokenize(
        texts[start : start + _SORTED], self.config.text.max_length
      )
      lengths = mask.sum(axis=1)
      order = np.argsort(lengths, kind="stable")
      out = np.empty((len(ids), self.config.joint_width), self._dtype)
      # Texts of like length together, as most of CLIP's 77 tokens are padding. The shapes world's
      # 10,645 training captions, tiny CLIP, tokenizer included: 5.9 s of CPU time instead of 10.1.
      for first in range(0, len(ids), _BATCH):
        rows = order[first : first + _BATCH]
        length = -(-int(lengths[rows[-1]]) // _PAD_TO) * _PAD_TO
        values = self._text(self._state, *(_padded(x[rows, :length]) for x in (ids, mask)))
        out[rows] = np.asarray(values)[: len(rows)]
      yield {"texts": out}

  def _cached(
    self,
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
    parts: Iterable[Mapping[str, np.ndarray]],
  ) -> dict[str, np.ndarray]:
    """The arrays that `name` stands for, memory-mapped.

    Args:
      name: equal names hold equal arrays.
      shapes: of the arrays, by their names.
      parts: their rows in order, a batch at a time; consumed only if the cache lacks them.
    """
    identity = [self._fingerprint, name, str(self._dtype)]
    folder = self._cache / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]
    if not folder.is_dir():
      # Written beside and renamed when whole: a killed run leaves no half-written cache.
      scratch = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
      try:
        self._write(scratch, shapes, parts)
        with self._writing():
          try:
            scratch.rename(folder)
          except OSError:
            if not folder.is_dir():  # otherwise another process was quicker
              raise
      finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return {name: self._open(folder / f"{name}.npy", shape) for name, shape in shapes.items()}

  def _open(self, file: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Maps a file of the cache into memory, if it is what it should be."""
    try:
      # np.load gives bfloat16 back as raw bytes: the file format has no name for it.
      array = np.load(file, mmap_mode="r").view(self._dtype)
      got = f"an array of shape {array.shape}"
    except (OSError, ValueError, TypeError) as error:
      array, got = None, f"{type(error).__name__}: {error}"
    if array is None or array.shape != shape:
      raise UserError(
        f"feature cache: expected an array of shape {shape} in {file}; got {got}. Delete the folder"
        f" {file.parent}: its features are then made again"
      )
    return array

  def _write(
    self,
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    parts: Iterable[Mapping[str, np.ndarray]],
  ) -> None:
    # Not through a memory map: on a full disk that ends the process, without an exception.
    with self._writing():
      folder.mkdir(parents=True, exist_ok=True)
      for name, shape in shapes.items():
        descr = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": descr, "fortran_order": False, "shape": shape}
        with (folder / f"{name}.npy").open("wb") as file:
          np.lib.format.write_array_header_1_0(file, header)
    for part in parts:
      with self._writing():
        for name, values in part.items():
          with (folder / f"{name}.npy").open("ab") as file:
            file.write(values.tobytes())

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    try:
      yield
    except OSError as error:
      raise UserError(
        f"feature cache: expected a folder that can be written; got {self._cache}: {error}."
        " Make room there, or set XDG_CACHE_HOME to another"
      ) from error


def _unit(x: np.ndarray) -> Float[np.ndarray, "*rows f"]:
  x = np.asarray(x, np.float32)
  return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-6)


def default_cache() -> Path:
  """Where features are kept unless told otherwise."""
  return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "afspl_jax" / "features"


def _padded(rows: np.ndarray, size: int = _BATCH) -> np.ndarray:
  """Fills up to `size` rows with copies of the first, so that one compile serves all."""
  fill = np.repeat(rows[:1], size - len(rows), axis=0)
  return np.concatenate([rows, fill])
