"""Images of more than 8 bits a colour, scaled to 8: the lowest value black, the highest white."""

import io
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt16
from PIL import Image, ImageFile, TiffImagePlugin

_AT_ONCE = 1 << 20  # values that are scaled at a time
_GREYS = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_NATIVE = "L" if sys.byteorder == "little" else "B"
_BITS, _PHOTOMETRIC, _PLANAR, _NO_DATA = 258, 262, 284, 42113  # tags of TIFF
_WHITE_IS_ZERO = 0
_JPEG_2000_HEAD = 1 << 16  # bytes in which its sizes stand
_PLAUSIBLE = 1e30  # numbers beyond it mark pixels without a value, as float32's largest often does


@dataclass(frozen=True)
class _Deep:
  """The values of an image, some rows at a time.

  Attributes:
    shape: rows, columns and colours.
    values: of some rows; NaN where a pixel has no value. Higher is brighter.
    opacity: of some rows, from 0 to 1; None where all pixels are opaque.
  """

  shape: tuple[int, int, int]
  values: Callable[[slice], Float64[np.ndarray, "rows columns colours"]]
  opacity: Callable[[slice], Float64[np.ndarray, "rows columns"]] | None


def scale_grey(image: Image.Image) -> Image.Image:
  """Scales a grey image in memory, if it has more than 8 bits.

  Raises:
    ValueError: no pixel has a value.
  """
  return _scaled(_grey(image)) if image.mode in _GREYS else image


def scale_deep(image: ImageFile.ImageFile, file: Path | io.BytesIO) -> Image.Image | None:
  """Scales an image of more than 8 bits a colour.

  Pillow keeps 16 bits only of grey images; of the others it decodes the high byte of every value.
  Its decoders are told to take the low byte, too, in a second pass.

  Args:
    image: opened by Pillow, not loaded yet.
    file: that it was opened from.

  Returns:
    Grey or RGB, with opacity if the image has any, and the image's metadata; None for an image of 8
    bits.

  Raises:
    ValueError: its values cannot be read, or no pixel has one.
  """
  mode = _raw_mode(image)
  if image.mode in _GREYS:
    deep = _grey(image)
  elif ";16" in mode and image.mode in ("RGB", "RGBA"):
    deep = _colours(image, file, mode)
  elif image.format == "PPM" and image.mode == "RGB" and _levels(image) > 255:
    deep = _ppm(image, file)
  else:
    _require_8_bits(image, file)
    return None
  out = _scaled(deep)
  out.info = {name: value for name, value in image.info.items() if name != "transparency"}
  return out


def _require_8_bits(image: ImageFile.ImageFile, file: Path | io.BytesIO) -> None:
  """Raises an error if Pillow would decode only the high bytes of an image's colours."""
  tags = _tags(image)
  if tags.get(_PLANAR) == 2 and max(tags.get(_BITS, (8,))) > 8:
    raise ValueError("16-bit colours in separate planes are not supported")
  deep = ";16" in _raw_mode(image) or (
    image.format == "SGI" and image.tile[0].codec_name == "SGI16"
  )
  if image.format == "JPEG2000":
    _, found, sizes = file_content(file, _JPEG_2000_HEAD).partition(b"\xff\x4f\xff\x51")
    deep = bool(found) and sizes[38] & 127 > 7  # Ssiz of the first colour: its bits - 1
  if deep:
    raise ValueError(f"16-bit colours of {image.format} files are not supported")


def file_content(file: Path | io.BytesIO, size: int = -1) -> bytes:
  """The first `size` bytes of a file, or all of them."""
  if isinstance(file, io.BytesIO):
    file.seek(0)
    return file.read(size)
  with file.open("rb") as opened:
    return opened.read(size)


def _raw_mode(image: ImageFile.ImageFile) -> str:
  """How the decoder reads a pixel, such as "RGB;16B"."""
  arguments = image.tile[0].args if image.tile else ""
  if isinstance(arguments, tuple):
    arguments = arguments[0] if arguments else ""
  return arguments if isinstance(arguments, str) else ""


def _tags(image: Image.Image) -> Mapping[int, Any]:
  return image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}


def _levels(image: ImageFile.ImageFile) -> int:
  arguments = image.tile[0].args
  return arguments[-1] if isinstance(arguments, tuple) and len(arguments) > 1 else 255


def _grey(image: Image.Image) -> _Deep:
  tags, array = _tags(image), np.asarray(image)
  sign = -1.0 if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else 1.0
  absent = float(str(tags[_NO_DATA]).strip("\0 ")) if _NO_DATA in tags else math.nan
  if array.dtype == np.float32:
    with np.errstate(over="ignore"):
      absent = float(np.float32(absent))
  clear = image.info.get("transparency")

  def values(rows: slice) -> np.ndarray:
    part = array[rows].astype(np.float64)
    part[~(np.abs(part) <= _PLAUSIBLE) | (part == absent)] = np.nan
    return sign * part[..., None]

  def opacity(rows: slice) -> np.ndarray:
    return (array[rows] != clear).astype(np.float64)

  return _Deep((*array.shape, 1), values, opacity if isinstance(clear, int) else None)


def _colours(image: ImageFile.ImageFile, file: Path | io.BytesIO, mode: str) -> _Deep:
  kind, _, order = mode.partition(";16")
  if kind == "LA":  # grey and opacity: the four bytes of a pixel as they are
    pairs = np.asarray(_decoded(file, "RGBA"))
    word = lambda rows: (pairs[rows, :, ::2].astype(np.uint16) << 8) | pairs[rows, :, 1::2]  # noqa: E731
    return _words(word, (*pairs.shape[:2], 2))
  order = _NATIVE if order == "N" else order
  kind, scaled = kind.replace("a", "A"), kind == "RGBa"
  high = np.asarray(_decoded(file, f"{kind};16{order}"))
  low = np.asarray(_decoded(file, f"{kind};16{'L' if order == 'B' else 'B'}"))
  clear = image.info.get("transparency")

  def words(rows: slice) -> UInt16[np.ndarray, "rows columns colours"]:
    return (high[rows].astype(np.uint16) << 8) | low[rows]

  return _words(words, high.shape, clear if isinstance(clear, tuple) else None, scaled)


def _words(
  words: Callable[[slice], UInt16[np.ndarray, "rows columns colours"]],
  shape: tuple[int, ...],
  clear: tuple[int, ...] | None = None,
  scaled: bool = False,
) -> _Deep:
  """16-bit values, the last of two or four being the opacity.

  Args:
    words: some rows.
    shape: of all of them.
    clear: a colour that is transparent.
    scaled: whether colours were multiplied by the opacity.
  """
  colours, has_opacity = shape[2] - (shape[2] % 2 == 0), shape[2] % 2 == 0

  def values(rows: slice) -> np.ndarray:
    found = words(rows).astype(np.float64)
    if scaled:
      found[..., :colours] *= 65535 / np.maximum(found[..., colours:], 1)
    return found[..., :colours]

  def opacity(rows: slice) -> np.ndarray:
    if has_opacity:
      return words(rows)[..., -1] / 65535
    return (words(rows) != np.array(clear)).any(axis=-1).astype(np.float64)

  return _Deep(
    (shape[0], shape[1], colours), values, opacity if has_opacity or clear is not None else None
  )


def _decoded(file: Path | io.BytesIO, mode: str) -> Image.Image:
  """Decodes a file whose decoder reads pixels in another way."""
  if isinstance(file, io.BytesIO):
    file.seek(0)
  with Image.open(file) as image:
    tiles = []
    for tile in image.tile:
      args = (mode, *tile.args[1:]) if isinstance(tile.args, tuple) else mode
      tiles.append(tile._replace(args=args))
    image.tile = tiles
    image.info.pop("transparency", None)
    image.load()
    return image


def _ppm(image: ImageFile.ImageFile, file: Path | io.BytesIO) -> _Deep:
  tile = image.tile[0]
  if tile.codec_name != "ppm":
    raise ValueError("a PPM file with 16-bit colours as text is not supported")
  count = image.width * image.height * 3
  found = np.frombuffer(file_content(file), ">u2", count, tile.offset).reshape(
    image.height, image.width, 3
  )
  return _words(lambda rows: found[rows].astype(np.uint16), found.shape)


def _scaled(deep: _Deep) -> Image.Image:
  rows, columns, colours = deep.shape
  # Some rows at a time: the whole image in float64, several times, would be gigabytes.
  starts = range(0, rows, max(1, _AT_ONCE // (columns * colours)))
  blocks = [slice(start, start + starts.step) for start in starts]
  low, high = math.inf, -math.inf
  for block in blocks:
    part = deep.values(block)
    if deep.opacity is not None:
      part = part[deep.opacity(block) > 0]
    if (part := part[np.isfinite(part)]).size:
      low, high = min(low, part.min()), max(high, part.max())
  if low > high:
    if deep.opacity is None:
      raise ValueError("no pixel is a number")
    low = high = 0.0  # nothing is visible
  span = (high - low) or 1.0
  out = np.zeros((rows, columns, colours + (deep.opacity is not None)), np.uint8)
  for block in blocks:
    levels = np.clip((deep.values(block) - low) / span, 0, 1) * 255
    out[block, :, :colours] = np.round(np.nan_to_num(levels))
    if deep.opacity is not None:
      out[block, :, colours] = np.round(deep.opacity(block) * 255)
  return Image.fromarray(out[..., 0] if out.shape[2] == 1 else out)
