"""What a CLIP checkpoint's preprocessor_config.json prescribes, checked."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from afspl_jax.errors import UserError
from afspl_jax.storage.json_text import parse

_MEAN = (0.48145466, 0.4578275, 0.40821073)  # OpenAI CLIP's
_STD = (0.26862954, 0.26130258, 0.27577711)
_LARGEST = 1024  # pixels of a side: of an image 100 times as long as wide, 300 MB


class ImageSettings:
  """A preprocessor_config.json; what it does not say is as transformers' CLIP has it."""

  def __init__(self, path: Path):
    """Reads the file.

    Raises:
      UserError: it cannot be read, or belongs to another kind of model. So do all others, of a
        setting that CLIP's processor does not know.
    """
    self._path = path
    try:
      self._raw = parse(path.read_bytes())
    except (ValueError, OSError) as error:
      raise UserError(
        f"{path}: expected JSON; got: {error}. Download it with the checkpoint."
      ) from error
    if not isinstance(self._raw, dict):
      raise UserError(
        f"{path}: expected a JSON object; got {type(self._raw).__name__}. Download it again."
      )
    kind = self._raw.get("image_processor_type", self._raw.get("feature_extractor_type", "CLIP"))
    if not str(kind).startswith("CLIP"):
      raise UserError(
        f'{path}: "image_processor_type" must be a CLIP one; got {kind!r:.60}. Take the file of the'
        " CLIP checkpoint."
      )

  def fault(self, name: str, expected: str) -> UserError:
    """An error that names a setting."""
    return UserError(
      f'{self._path}: "{name}" must be {expected}; got {self._raw.get(name)!r:.100}. Take the'
      " file of the CLIP checkpoint."
    )

  def resample(self) -> Image.Resampling | None:
    """The filter; None where images are not resized."""
    if not self._flag("do_resize"):
      return None
    value = self._raw.get("resample", Image.Resampling.BICUBIC)
    if value not in list(Image.Resampling):
      raise self.fault("resample", "a number of Pillow's filters, 0 to 5")
    return Image.Resampling(value)

  def resized(self) -> tuple[int | None, tuple[int, int] | None]:
    """The shorter side, or height and width, after resizing; None of what is not given."""
    if not self._flag("do_resize"):
      return None, None
    value = self._raw.get("size", 224)
    if isinstance(value, dict) and set(value) == {"shortest_edge"}:
      value = value["shortest_edge"]
    if _is_side(value):
      return value, None
    return None, self._height_width("size", value)

  def cropped(self) -> tuple[int, int] | None:
    """Height and width; None where images are not cropped."""
    if not self._flag("do_center_crop"):
      return None
    value = self._raw.get("crop_size", 224)
    return (value, value) if _is_side(value) else self._height_width("crop_size", value)

  def levels(self) -> Float[np.ndarray, "256 3"]:
    """In the precisions of transformers' steps: scaled in float64, normalised in float32."""
    values = np.repeat(np.arange(256.0)[:, None], 3, axis=1)
    if self._flag("do_rescale"):
      values *= self._numbers("rescale_factor", 1 / 255)
    with np.errstate(over="ignore"):  # reported below
      values = values.astype(np.float32)
    if self._flag("do_normalize"):
      std = self._numbers("image_std", _STD)
      if not np.all(std):
        raise self.fault("image_std", "numbers that are not 0")
      with np.errstate(all="ignore"):  # reported just below
        mean, std = self._numbers("image_mean", _MEAN).astype(np.float32), std.astype(np.float32)
        values = (values - mean) / std
    if not np.isfinite(values).all():
      raise self.fault("image_std", "numbers that leave all colours finite")
    return values

  def _flag(self, name: str) -> bool:
    value = self._raw.get(name, True)
    if not isinstance(value, bool):
      raise self.fault(name, "true or false")
    return value

  def _numbers(self, name: str, default: Any) -> Float[np.ndarray, "channels"]:
    value = self._raw.get(name, default)
    try:
      found = np.array(value, np.float64)
    except (TypeError, ValueError, OverflowError):
      raise self.fault(name, "a number, or three") from None
    if found.shape not in ((), (3,)) or not np.isfinite(found).all():
      raise self.fault(name, "a number, or three")
    return np.broadcast_to(found, 3)

  def _height_width(self, name: str, value: Any) -> tuple[int, int]:
    if isinstance(value, dict) and set(value) == {"height", "width"}:
      value = [value["height"], value["width"]]
    if not (isinstance(value, list) and len(value) == 2 and all(map(_is_side, value))):
      edge = '{"shortest_edge": n}, ' if name == "size" else ""  # a crop's has no meaning
      sides = f'{{"height": n, "width": n}} or n, n from 1 to {_LARGEST}'
      raise self.fault(name, edge + sides)
    return value[0], value[1]


def _is_side(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LARGEST
