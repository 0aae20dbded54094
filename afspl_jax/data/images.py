"""Image files, whatever they are, as the RGB pictures that CLIP takes."""

import io
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

from afspl_jax.errors import UserError

VERSION = 1  # raise it when a file comes out as another picture than before

_LONGEST = 100  # times the shorter side: CLIP scales that to 224, and the other by as much
_MONTAGE = 1024  # pixels of a side
_AT_ONCE = 1 << 20  # pixels that are scaled at a time
_DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
# Those formats are programs, that Pillow has another program or the system run.
_RUN = ("EPS", "WMF")
# What Pillow's readers raise for what is not a whole image.
_UNDECODABLE = (
  OSError,
  SyntaxError,
  ValueError,
  TypeError,
  LookupError,
  ArithmeticError,
  AttributeError,
  EOFError,
  RuntimeError,
  struct.error,
  zlib.error,
  ImageCms.PyCMSError,
  Image.DecompressionBombError,
  Image.DecompressionBombWarning,
)


def decode(file: Path | io.BytesIO, name: str) -> Image.Image:
  """Decodes one image as RGB, as a person sees it.

  A photo is turned as its EXIF says. What is transparent becomes white. Of 16 bits, and of numbers
  that are not colours at all, the lowest becomes black and the highest white, as in MIMIC-CXR-JPG
  (Johnson et al. 2019): scanners use 10 to 14 of 16 bits, each in its own way. Of several frames
  or pages it is the first.

  Args:
    file: a file or its content.
    name: of the image, for messages.

  Raises:
    UserError: it is not an image, not whole, or too large: of more pixels than Pillow takes for
      safe (89 million), or a hundred times as long as wide.
  """
  try:
    with Image.open(file) as image:
      # Up to twice as many Pillow only warns of.
      if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise ValueError(
          f"{image.width} x {image.height} pixels could be a decompression bomb's; at most"
          f" {Image.MAX_IMAGE_PIXELS:,} are taken"
        )
      if image.format in _RUN:
        raise ValueError(f"{image.format} files are programs, which are not run")
      if max(image.size) > _LONGEST * min(image.size):
        raise ValueError(f"{image.width} x {image.height} pixels are no picture")
      return _as_rgb(ImageOps.exif_transpose(image))
  except FileNotFoundError as error:
    raise UserError(f"{name}: expected an image; there is no such file") from error
  except _UNDECODABLE as error:
    raise UserError(
      f"{name}: expected an image; got a file that cannot be decoded:"
      f" {' '.join(str(error).split()) or type(error).__name__}."
      " Fetch or export it again, or remove its records."
    ) from error


def montage(images: Sequence[Image.Image]) -> Image.Image:
  """One square picture of several, in rows from the upper left, on black.

  As many columns as the picture would have rows if it were full; each image whole and in the middle
  of its square cell, and rows in the middle of the picture. CLIP's centre crop, which cuts what is
  longer than wide, so loses nothing.

  Args:
    images: at least one, in RGB.
  """
  columns = math.ceil(math.sqrt(len(images)))
  rows = -(-len(images) // columns)
  side = min(_MONTAGE // columns, max(max(image.size) for image in images))
  picture = Image.new("RGB", (columns * side, columns * side))
  top = (columns - rows) * side // 2
  for i, image in enumerate(images):
    row, column = divmod(i, columns)
    picture.paste(ImageOps.pad(image, (side, side)), (column * side, top + row * side))
  return picture


def _as_rgb(image: Image.Image) -> Image.Image:
  if image.mode in _DEEP:
    image = _scaled(image)
  if image.has_transparency_data:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")
  if image.mode == "LAB":  # which convert() does not know
    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    found = ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
    assert found is not None  # only in-place conversion returns nothing
    return found
  return image.convert("RGB")


def _scaled(image: Image.Image) -> Image.Image:
  values = np.asarray(image)
  # Some rows at a time: eight bytes a pixel, several times over, would be gigabytes.
  starts = range(0, len(values), max(1, _AT_ONCE // values.shape[1]))
  blocks = [slice(start, start + starts.step) for start in starts]
  ends = []
  for block in blocks:
    part = np.asarray(values[block], np.float64)
    if (part := part[np.isfinite(part)]).size:
      ends += [part.min(), part.max()]
  if not ends:
    raise ValueError("no pixel is a number")
  low, high = min(ends), max(ends)
  span = (high - low) or 1.0
  out = np.empty(values.shape, np.uint8)
  for block in blocks:
    part = np.asarray(values[block], np.float64)
    part = np.where(np.isfinite(part), part, low)
    out[block] = np.round((part - low) / span * 255)
  return Image.fromarray(out)
