"""Image files of any format as RGB pictures."""

import io
import math
import re
import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from afspl_jax.data.deep_images import file_content, scale_deep, scale_grey
from afspl_jax.errors import UserError
from afspl_jax.storage.file_format import HEAD, file_format

VERSION = 2  # raise it when a file is decoded to another picture than before

_LONGEST = 100  # times the shorter side, which CLIP scales to 224, and the longer side with it
_MONTAGE = 1024  # pixels of a side
_TAGS = r"PIL\.TiffImagePlugin"  # the module that reads the tags of EXIF, too
_ORIENTATION = 0x0112
_TURNS = {  # by the orientation in EXIF
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
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
  _hide_warnings_of_tags()
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
      whole = scale_deep(image, file) or image
      return _as_rgb(_upright(whole))
  except FileNotFoundError as error:
    raise UserError(f"{name}: expected an image; there is no such file") from error
  except UnidentifiedImageError as error:
    raise UserError(_no_image(file, name)) from error
  except _UNDECODABLE as error:
    raise UserError(
      f"{name}: expected an image; got a file that cannot be decoded:"
      f" {' '.join(str(error).split()) or type(error).__name__}."
      " Fetch or export it again, or remove its records."
    ) from error


def as_rgb(image: Image.Image) -> Image.Image:
  """Converts an image in memory as `decode_image` converts a file, but does not rotate it.

  Raises:
    UserError: no pixel has a value.
  """
  try:
    return _as_rgb(scale_grey(image))
  except ValueError as error:
    raise UserError(f"image: expected pixels with values; got: {error}. Leave it out.") from error


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


def _no_image(file: Path | io.BytesIO, name: str) -> str:
  """The message about a file of no known image format."""
  head = file_content(file, HEAD)
  known = file_format(head)
  got = "an empty file" if not head else known.name if known else "a file of an unknown format"
  fetch = known is None or known.placeholder
  do = "Fetch or export it again" if fetch else "Export it as PNG or JPEG"
  return (
    f"{name}: expected an image; got a file that cannot be decoded: {got}. {do}, or remove its"
    " records."
  )


def _hide_warnings_of_tags() -> None:
  """Hides Pillow's warnings about damaged tags, of which one file can have dozens.

  Python's way to hide them around a call changes the filters of all threads, so they stay hidden.
  """
  modules = [entry[3] for entry in warnings.filters]
  if not any(isinstance(module, re.Pattern) and module.pattern == _TAGS for module in modules):
    warnings.filterwarnings("ignore", module=_TAGS)


def _upright(image: Image.Image) -> Image.Image:
  """Rotates a photo as its EXIF says; a damaged block says nothing."""
  image.load()
  try:
    turn = image.getexif().get(_ORIENTATION)
  except (SyntaxError, ValueError, TypeError, LookupError, struct.error):
    turn = None
  return image.transpose(_TURNS[turn]) if turn in _TURNS else image


def _as_rgb(image: Image.Image) -> Image.Image:
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
