"""Image files of any format as RGB pictures."""

import io
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

from afspl_jax.errors import UserError

VERSION = 1  # raise it when a file is decoded to another picture than before

_LONGEST = 100  # times the shorter side, which CLIP scales to 224, and the longer side with it
_MONTAGE = 1024  # pixels of a side
_AT_ONCE = 1 << 20  # pixels that are scaled at a time
_DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
# Files of these formats are programs, which Pillow lets another program or the system run.
_RUN = ("EPS", "WMF")
# What Pillow's decoders raise for a file that is not a complete image.
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


def decode_image(file: Path | io.BytesIO, name: str) -> Image.Image:
  """Decodes one image as RGB, as a person sees it.

  A photo is rotated as its EXIF says. Transparent pixels become white. In an image of 16 bits, or
  of numbers that are not colours, the lowest value becomes black and the highest white, as in
  MIMIC-CXR-JPG (Johnson et al. 2019): scanners use 10 to 14 of 16 bits, each in its own way. Of
  several frames or pages, the first is taken.

  Args:
    file: a file or its content.
    name: of the image, for messages.

  Raises:
    UserError: it is not an image, is incomplete, or is too large: it has more pixels than Pillow's
      safe limit (89 million), or is over a hundred times as long as wide.
  """
  try:
    with Image.open(file) as image:
      # Up to twice the limit, Pillow only warns.
      if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise ValueError(
          f"{image.width} x {image.height} pixels, perhaps a decompression bomb; at most"
          f" {Image.MAX_IMAGE_PIXELS:,} pixels are allowed"
        )
      if image.format in _RUN:
        raise ValueError(f"{image.format} files are programs and are not run")
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
  """Joins several images to one square picture on black, in rows from the upper left.

  The grid is the smallest square that holds the images. Each image is complete and centred in its
  square cell, and the rows are centred vertically. As the picture is square, a centre crop loses
  nothing.

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
  if image.mode == "LAB":  # not known to convert()
    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    found = ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
    assert found is not None  # only in-place conversion returns nothing
    return found
  return image.convert("RGB")


def _scaled(image: Image.Image) -> Image.Image:
  values = np.asarray(image)
  # Some rows at a time: the whole image in float64, several times, would be gigabytes.
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
