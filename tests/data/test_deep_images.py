"""Images of more than 8 bits a colour, written here byte by byte: Pillow writes only grey ones."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from afspl_jax.data.images import as_rgb, decode_image
from afspl_jax.errors import UserError

PHOTOMETRIC = {1: 1, 2: 1, 3: 2, 4: 2}  # of TIFF, by the number of colours


def png(values: np.ndarray, clear: tuple[int, ...] = (), exif: bytes = b"") -> io.BytesIO:
  """A 16-bit PNG with a filter of its own for each row."""

  def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

  height, width, colours = values.shape
  rows = values.astype(">u2").reshape(height, -1).view(np.uint8).astype(int)
  size, packed = 2 * colours, b""
  for y, row in enumerate(rows):
    above = rows[y - 1] if y else np.zeros_like(row)
    left = np.concatenate([np.zeros(size, int), row[:-size]])
    predicted = [np.zeros_like(row), left, above, (left + above) // 2][y % 4]
    packed += bytes([y % 4]) + ((row - predicted) % 256).astype(np.uint8).tobytes()
  head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[colours], 0, 0, 0)
  parts = chunk(b"IHDR", head)
  parts += chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear)) if clear else b""
  parts += chunk(b"eXIf", exif) if exif else b""
  parts += chunk(b"IDAT", zlib.compress(packed)) + chunk(b"IEND", b"")
  return io.BytesIO(b"\x89PNG\r\n\x1a\n" + parts)


def tiff(values: np.ndarray, order: str = "<", packed: bool = False, **changed) -> io.BytesIO:
  """A TIFF of one strip; `changed` sets tags, by names like t262, or removes them with None."""
  height, width, colours = values.shape
  kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
  body = values.astype(values.dtype.newbyteorder(order)).tobytes()
  body = zlib.compress(body) if packed else body
  bits = 8 * values.dtype.itemsize
  entries = {
    256: (4, (width,)),
    257: (4, (height,)),
    258: (3, (bits,) * colours),
    259: (3, (8 if packed else 1,)),
    262: (3, (PHOTOMETRIC[colours],)),
    273: (4, (8,)),
    277: (3, (colours,)),
    278: (4, (height,)),
    279: (4, (len(body),)),
    339: (3, (kind,) * colours),
  }
  if colours == 4:
    entries[338] = (3, (2,))
  for name, value in changed.items():
    text = isinstance(value, str)
    entries[int(name[1:])] = (2, value.encode() + b"\0") if text else (3, (value,))
    if value is None:
      del entries[int(name[1:])]
  body += b"\0" * (len(body) % 2)
  directory, extra, start = b"", b"", 8 + len(body) + 2 + 12 * len(entries) + 4
  for tag, (type_, value) in sorted(entries.items()):
    data = value if type_ == 2 else struct.pack(f"{order}{len(value)}{'HI'[type_ - 3]}", *value)
    count = len(value)
    if len(data) > 4:
      place, extra = start + len(extra), extra + data + b"\0" * (len(data) % 2)
      data = struct.pack(f"{order}I", place)
    directory += struct.pack(f"{order}HHI", tag, type_, count) + data.ljust(4, b"\0")
  mark = b"II*\0" if order == "<" else b"MM\0*"
  head = mark + struct.pack(f"{order}I", 8 + len(body))
  directory = struct.pack(f"{order}H", len(entries)) + directory + b"\0" * 4
  return io.BytesIO(head + body + directory + extra)


def decoded(file: io.BytesIO) -> np.ndarray:
  image = decode_image(file, "it")
  assert image.mode == "RGB"
  return np.asarray(image)


def picture(colours: int, low: int = 0, high: int = 4095) -> np.ndarray:
  """Random colours from low to high; the last of 2 or 4 is the opacity, from 0 to 65,535."""
  values = np.random.default_rng(colours).integers(low, high + 1, (9, 7, colours), np.uint16)
  values[0, 0, 0], values[0, 1, 0] = low, high
  if colours in (2, 4):
    values[..., -1] = np.linspace(0, 65535, 63).round().reshape(9, 7).astype(np.uint16)
    values[:2, :2, -1] = 65535  # so that the lowest and highest are visible
  return values


def expected(values: np.ndarray) -> np.ndarray:
  """What docs/data.md says: lowest black, highest white, transparent on white."""
  count = values.shape[2]
  colours = values[..., : count - (count % 2 == 0)].astype(np.float64)
  alpha = values[..., -1:] / 65535 if count % 2 == 0 else np.ones((*values.shape[:2], 1))
  seen = colours[alpha[..., 0] > 0]
  levels = (colours - seen.min()) / (seen.max() - seen.min()) * 255
  return np.broadcast_to(levels.clip(0, 255) * alpha + 255 * (1 - alpha), (*values.shape[:2], 3))


@pytest.mark.parametrize("low, high", [(0, 4095), (0, 65535), (300, 420)])
@pytest.mark.parametrize("colours", [1, 2, 3, 4])
def test_a_16_bit_png_is_scaled(colours, low, high):
  values = picture(colours, low, high)
  np.testing.assert_allclose(decoded(png(values)), expected(values), atol=1.6)  # 8 bits, twice


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("colours", [1, 3, 4])
def test_a_16_bit_tiff_is_scaled(colours, order, packed):
  values = picture(colours)
  np.testing.assert_allclose(decoded(tiff(values, order, packed)), expected(values), atol=1.6)


def test_colours_multiplied_by_their_opacity_are_divided_by_it():
  values = picture(4)
  values[..., 3] = np.maximum(values[..., 3], 20000)
  multiplied = values.copy()
  multiplied[..., :3] = np.round(values[..., :3] * (values[..., 3:] / 65535))
  np.testing.assert_allclose(decoded(tiff(multiplied, t338=1)), expected(values), atol=1.6)


def test_a_16_bit_ppm_is_scaled():
  values = picture(3)
  file = io.BytesIO(b"P6\n7 9\n65535\n" + values.astype(">u2").tobytes())
  np.testing.assert_allclose(decoded(file), expected(values), atol=0.6)
  with pytest.raises(UserError, match="PPM file with 16-bit colours as text is not supported"):
    decoded(io.BytesIO(b"P3\n1 1\n65535\n1 2 3\n"))
  with pytest.raises(UserError, match="cannot be decoded"):
    decoded(io.BytesIO(file.getvalue()[:-5]))


@pytest.mark.parametrize("colours", [1, 3])
def test_a_transparent_value_becomes_white_and_counts_for_nothing(colours):
  values = picture(colours, 100, 300)
  values[4, 2:5] = 60000 + np.arange(colours)
  values[4, 5] = 300  # of which only one colour is transparent
  found = decoded(png(values, clear=tuple(int(value) for value in values[4, 2])))
  assert (found[4, 2:5] == 255).all()
  values[4, 2:5] = 300
  np.testing.assert_allclose(found, expected(values), atol=0.6)


def test_an_image_of_nothing_but_transparency_is_white():
  assert (decoded(png(np.full((3, 4, 1), 7, np.uint16), clear=(7,))) == 255).all()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_white_is_zero_gives_the_same_picture(dtype, packed):
  top = 255 if dtype == "uint8" else 4095
  values = np.linspace(0, top, 63).round().astype(dtype).reshape(9, 7, 1)
  usual = decoded(tiff(values, packed=packed))
  assert usual[0, 0, 0] == 0 and usual[-1, -1, 0] == 255
  inverted = decoded(tiff((top - values).astype(dtype), packed=packed, t262=0))
  np.testing.assert_array_equal(inverted, usual)


@pytest.mark.parametrize(
  ("dtype", "mark", "tag"),
  [
    ("float32", -9999.0, "-9999"),
    ("float32", -3.4028235e38, "-3.4028234663852886e+38"),
    ("float32", -3.4028235e38, None),
    ("float32", 3.4028235e38, None),
    ("float32", np.nan, "nan"),
    ("int32", -32768, "-32768 "),
    ("uint16", 65535, "65535"),
  ],
)
def test_pixels_without_data_are_black_and_count_for_nothing(dtype, mark, tag):
  values = np.linspace(10, 20, 63).reshape(9, 7, 1).astype(dtype)
  changed = {} if tag is None else {"t42113": tag}
  usual = decoded(tiff(values, **changed))
  assert usual[0, 0, 0] == 0 and usual[-1, -1, 0] == 255
  marked = values.copy()
  marked[3:6, 2] = mark
  found = decoded(tiff(marked, **changed))
  assert not found[3:6, 2].any()
  blackened = usual.copy()
  blackened[3:6, 2] = 0
  np.testing.assert_array_equal(found, blackened)
  inverted = decoded(tiff(marked, **changed, t262=0)) if dtype != "int32" else None
  assert inverted is None or not inverted[3:6, 2].any()


def test_a_mark_that_no_value_can_have_marks_nothing():
  values = np.array([[[55537], [65535]]], np.uint16)  # 55,537 is -9,999 in 16 bits
  assert decoded(tiff(values, t42113="-9999"))[0, :, 0].tolist() == [0, 255]
  with pytest.raises(UserError, match="could not convert string to float: 'none'"):
    decoded(tiff(values, t42113="none"))


def test_a_deep_photo_is_rotated_by_its_exif():
  exif = Image.Exif()
  exif[0x0112] = 6
  values = picture(3)
  turned = decoded(png(values, exif=exif.tobytes()[6:]))
  np.testing.assert_array_equal(turned, np.rot90(decoded(png(values)), -1))
  turned = decoded(tiff(values, t274=6))
  np.testing.assert_array_equal(turned, np.rot90(decoded(tiff(values)), -1))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_16_bit_colours_that_pillow_cuts_are_refused(mode):
  image = Image.new(mode, (30, 20), "red" if mode != "LA" else None)
  file = io.BytesIO()
  image.save(file, "JPEG2000")
  shallow = file.getvalue()
  assert decoded(io.BytesIO(shallow)).shape == (20, 30, 3)
  at = shallow.index(b"\xff\x4f\xff\x51") + 42
  deep = bytearray(shallow)
  deep[at : at + 3 * len(mode) : 3] = bytes([15]) * len(mode)  # bits - 1 of each colour
  assert shallow[at : at + 3 * len(mode) : 3] == bytes([7]) * len(mode)
  with pytest.raises(UserError, match="16-bit colours of JPEG2000 files are not supported"):
    decoded(io.BytesIO(bytes(deep)))
  if mode != "LA":
    for bytes_each in (1, 2):
      file = io.BytesIO()
      image.save(file, "SGI", bpc=bytes_each)
      if bytes_each == 1:
        assert decoded(file)[0, 0].tolist() == [255, 0, 0]
      else:
        with pytest.raises(UserError, match="16-bit colours of SGI files are not supported"):
          decoded(file)


def test_a_fourth_value_that_is_not_opacity_is_ignored():
  values = picture(4)
  np.testing.assert_allclose(decoded(tiff(values, t338=0)), expected(values[..., :3]), atol=0.6)


def test_16_bit_inks_are_refused():
  with pytest.raises(UserError, match="16-bit colours of TIFF files are not supported"):
    decoded(tiff(picture(4), t262=5, t338=None))


def test_16_bit_colours_in_planes_are_refused():
  with pytest.raises(UserError, match="16-bit colours in separate planes are not supported"):
    decoded(tiff(picture(3), t284=2))


def test_a_grey_image_in_memory_is_scaled_like_its_file():
  values = picture(1)
  np.testing.assert_array_equal(as_rgb(Image.open(png(values))), decoded(png(values)))
  np.testing.assert_array_equal(as_rgb(Image.fromarray(values[..., 0])), decoded(png(values)))
  clear = np.asarray(as_rgb(Image.new("RGBA", (2, 2), (9, 9, 9, 0))))
  assert (clear == 255).all()
  with pytest.raises(UserError, match="image: expected pixels with values; got: no pixel is"):
    as_rgb(Image.fromarray(np.full((2, 2), np.nan, np.float32)))


def test_a_path_gives_the_same_as_its_content(tmp_path):
  file = tmp_path / "x.png"
  file.write_bytes(png(picture(4)).getvalue())
  np.testing.assert_array_equal(decode_image(file, "x"), decoded(png(picture(4))))
