"""CLIP features: every image passes the frozen encoder once, and is read from disk ever after.

Measured in PyTorch on one CPU core with ViT-B/32 and flan-t5-small: a round takes half as long.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float
from tqdm import tqdm

from afspl_jax.backbones.clip import Clip
from afspl_jax.backbones.processing import ImageProcessor, Tokenizer
from afspl_jax.errors import UserError
from afspl_jax.types import Source

_BATCH = 64  # images or texts encoded at a time


class ImageFeatures(NamedTuple):
  """Of every image of a split, in its order; memory-mapped where they are cached."""

  tokens: Float[np.ndarray, "images v w"]
  joint: Float[np.ndarray, "images f"]


class FeatureEncoder:
  """Encodes with one frozen CLIP.

  Args:
    clip: whose features are taken.
    processor: of the same checkpoint.
    tokenizer: of the same checkpoint.
    fingerprint: of the checkpoint; names the cache, so that no other's features are ever read.
    cache: folder to keep image features in.
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
    self._config, self._fingerprint, self._cache = clip.config, fingerprint, cache
    self._processor, self._tokenizer = processor, tokenizer
    self._image = jax.jit(lambda state, pixels: nnx.merge(graph, state).encode_image(pixels))
    self._text = jax.jit(lambda state, ids, mask: nnx.merge(graph, state).encode_text(ids, mask))
    self._dtype = np.dtype(clip.vision.dtype)

  def images(self, source: Source) -> ImageFeatures:
    """Features of all images of `source`, from the cache if they are there.

    Raises:
      UserError: the cache's folder cannot be written.
    """
    identity = [self._fingerprint, source.fingerprint, str(self._dtype)]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]
    folder = self._cache / key
    if not folder.is_dir():
      self._encode(source, folder)
    # np.load gives bfloat16 back as raw bytes: the file format has no name for it.
    parts = (np.load(folder / f"{n}.npy", mmap_mode="r").view(self._dtype) for n in FILES)
    return ImageFeatures(*parts)

  def _encode(self, source: Source, folder: Path) -> None:
    keys, vision = source.images(), self._config.vision
    shapes = (
      (len(keys), 1 + vision.num_patches, vision.width),
      (len(keys), self._config.joint_width),
    )
    # Written beside and renamed when whole: a killed run leaves no half-written cache.
    scratch = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    try:
      scratch.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise UserError(
        f"feature cache: expected a folder that can be written; got {self._cache}: {error}."
        " Set XDG_CACHE_HOME to another"
      ) from error
    outputs = [
      np.lib.format.open_memmap(scratch / f"{name}.npy", "w+", self._dtype, shape)
      for name, shape in zip(FILES, shapes, strict=True)
    ]
    for start in tqdm(range(0, len(keys), _BATCH), desc="CLIP features", unit="batch"):
      part = keys[start : start + _BATCH]
      pixels = _padded(self._processor([source.load_image(key) for key in part]))
      for output, values in zip(outputs, self._image(self._state, pixels), strict=True):
        output[start : start + len(part)] = np.asarray(values)[: len(part)]
    for output in outputs:
      output.flush()
    try:
      scratch.rename(folder)
    except OSError:
      if not folder.is_dir():
        raise
      shutil.rmtree(scratch)  # another process was quicker

  def texts(self, texts: Sequence[str]) -> dict[str, Float[np.ndarray, " f"]]:
    """Feature of each distinct text; meant for instructions, never for targets."""
    distinct = sorted(set(texts))
    length = self._config.text.max_length
    out: dict[str, np.ndarray] = {}
    for start in range(0, len(distinct), _BATCH):
      part = distinct[start : start + _BATCH]
      ids, mask = self._tokenizer.tokenize(part, length)
      values = np.asarray(self._text(self._state, _padded(ids), _padded(mask)))
      out.update(zip(part, values[: len(part)], strict=True))
    return out


FILES = ("tokens", "joint")


def default_cache() -> Path:
  """Where features are kept unless told otherwise."""
  return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "afspl_jax" / "features"


def _padded(rows: np.ndarray) -> np.ndarray:
  """Fills up to _BATCH rows with copies of the first, so that one compile serves all."""
  fill = np.repeat(rows[:1], _BATCH - len(rows), axis=0)
  return np.concatenate([rows, fill])
