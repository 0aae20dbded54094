"""The settings in a checkpoint's preprocessor_config.json, checked."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image

from afspl_jax.errors import UserError
from afspl_jax.storage.json_text import parse_json

_LARGEST = 1024  # pixels of a side: of an image 100 times as long as wide, 300 MB


class ImageDefaults(NamedTuple):
  """The settings that a model's image processor has where its file says nothing."""

  model: str  # how the names of its processors begin, such as CLIP
  size: int | tuple[int, int] = 224  # the shorter side, or height and width, after resizing
  crop: int | None = 224  # side of the square in the middle; None: images are not cropped
  mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)  # OpenAI CLIP's
  std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
  rescale: float = 1 / 255
  needs_file: bool = True  # False: a checkpoint without the file has these settings


CLIP = ImageDefaults("CLIP")


class ImageSettings:
  """A preprocessor_config.json; missing settings have the defaults of its model's processor."""

  def __init__(self, path: Path, defaults: ImageDefaults = CLIP):
    """Reads the file.

    Args:
      path: the file.
      defaults: of the model.

    Raises:
      UserError: it cannot be read, or belongs to another type of model. The other methods raise it
        for a value that the model's processor does not allow.
    """
    self._path, self._defaults = path, defaults
    self._raw: dict[str, Any] = {}
    if defaults.needs_file or path.is_file():
      self._raw = self._read()
    processor = self._raw.get(
      "image_processor_type", self._raw.get("feature_extractor_type", defaults.model)
    )
    if not str(processor).startswith(defaults.model):
      raise UserError(
        f'{path}: "image_processor_type" must be a {defaults.model} one; got {processor!r:.60}.'
        f" Take the file of the {defaults.model} checkpoint."
      )

  def _read(self) -> dict[str, Any]:
    path = self._path
    try:
      raw = parse_json(path.read_bytes())
    except (ValueError, OSError) as error:
      raise UserError(
        f"{path}: expected JSON; got: {error}. Download it with the checkpoint."
      ) from error
    if not isinstance(raw, dict):
      raise UserError(
        f"{path}: expected a JSON object; got {type(raw).__name__}. Download it again."
      )
    return _without_null(raw)

  def error(self, name: str, expected: str) -> UserError:
    """Makes the error of a wrong setting."""
    return UserError(
      f'{self._path}: "{name}" must be {expected}; got {self._raw.get(name)!r:.100}. Take the'
      f" file of the {self._defaults.model} checkpoint."
    )

  def resample(self) -> Image.Resampling | None:
    """The filter; None if images are not resized."""
    if not self._flag("do_resize"):
      return None
    value = self._raw.get("resample", Image.Resampling.BICUBIC)
    if value not in list(Image.Resampling):
      raise self.error("resample", "a number of Pillow's filters, 0 to 5")
    return Image.Resampling(value)

  def resized(self) -> tuple[int | None, tuple[int, int] | None]:
    """The shorter side, or height and width, after resizing; the other one is None."""
    if not self._flag("do_resize"):
      return None, None
    value = self._raw.get("size", self._defaults.size)
    if isinstance(value, tuple):
      return None, value
    if isinstance(value, dict) and set(value) == {"shortest_edge"}:
      value = value["shortest_edge"]
    if _is_side(value):
      return value, None
    return None, self._height_width("size", value)

  def cropped(self) -> tuple[int, int] | None:
    """Height and width; None if images are not cropped."""
    side = self._defaults.crop
    if not self._flag("do_center_crop", side is not None):
      return None
    value = self._raw.get("crop_size", side or 224)
    return (value, value) if _is_side(value) else self._height_width("crop_size", value)

  def levels(self) -> Float[np.ndarray, "256 3"]:
    """The value of each level of a colour; as in transformers, scaled in float64, then float32."""
    values = np.repeat(np.arange(256.0)[:, None], 3, axis=1)
    if self._flag("do_rescale"):
      values *= self._numbers("rescale_factor", self._defaults.rescale)
    with np.errstate(over="ignore"):  # reported below
      values = values.astype(np.float32)
    if self._flag("do_normalize"):
      std = self._numbers("image_std", self._defaults.std)
      if not np.all(std):
        raise self.error("image_std", "numbers that are not 0")
      with np.errstate(all="ignore"):  # reported just below
        mean = self._numbers("image_mean", self._defaults.mean).astype(np.float32)
        values = (values - mean) / std.astype(np.float32)
    if not np.isfinite(values).all():
      raise self.error("image_std", "numbers with which all colours are finite")
    return values

  def _flag(self, name: str, default: bool = True) -> bool:
    value = self._raw.get(name, default)
    if not isinstance(value, bool):
      raise self.error(name, "true or false")
    return value

  def _numbers(self, name: str, default: Any) -> Float[np.ndarray, "channels"]:
    value = self._raw.get(name, default)
    try:
      found = np.array(value, np.float64)
    except (TypeError, ValueError, OverflowError):
      raise self.error(name, "a number, or three") from None
    if found.shape not in ((), (3,)) or not np.isfinite(found).all():
      raise self.error(name, "a number, or three")
    return np.broadcast_to(found, 3)

  def _height_width(self, name: str, value: Any) -> tuple[int, int]:
    if isinstance(value, dict) and set(value) == {"height", "width"}:
      value = [value["height"], value["width"]]
    if not (isinstance(value, list) and len(value) == 2 and all(map(_is_side, value))):
      edge = '{"shortest_edge": n}, ' if name == "size" else ""  # a crop's has no meaning
      sides = f'{{"height": n, "width": n}} or n, n from 1 to {_LARGEST}'
      raise self.error(name, edge + sides)
    return value[0], value[1]


def _without_null(settings: dict[str, Any]) -> dict[str, Any]:
  """Settings that are not null, also within sizes: null is the default, as in transformers 4.

  A flag that is null is kept, and refused: transformers 4 takes it for true, and 5 for false.
  """
  return {
    name: _without_null(value) if isinstance(value, dict) else value
    for name, value in settings.items()
    if value is not None or name.startswith("do_")
  }


def _is_side(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LARGEST
