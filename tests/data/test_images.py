"""Image files of every kind that Pillow writes, and of none."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from afspl_jax.data.images import decode_image, montage
from afspl_jax.errors import UserError


def encoded(image: Image.Image, kind: str = "PNG", **how) -> io.BytesIO:
  out = io.BytesIO()
  image.save(out, kind, **how)
  out.seek(0)
  return out


def pixels(image: Image.Image, kind: str = "PNG", **how) -> np.ndarray:
  found = decode_image(encoded(image, kind, **how), "it")
  assert found.mode == "RGB"
  return np.asarray(found)


def photo(mode: str = "RGB") -> Image.Image:
  """One whose corners all differ."""
  values = np.zeros((20, 30, 3), np.uint8)
  values[:10, :15], values[:10, 15:], values[10:, :15] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
  return Image.fromarray(values).convert(mode)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_photo_is_rotated_by_its_exif(turn, kind):
  exif = Image.Exif()
  exif[0x0112] = turn
  methods = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
  }
  stored = photo().transpose(methods[turn]) if turn > 1 else photo()
  found = pixels(stored, kind, exif=exif.tobytes())
  assert found.shape == (20, 30, 3)
  np.testing.assert_allclose(found[5, 5], (250, 0, 0), atol=40)  # JPEG is lossy
  np.testing.assert_allclose(found[5, 25], (0, 250, 0), atol=40)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_damaged_exif_block_costs_neither_the_picture_nor_a_warning(kind):
  exif = Image.Exif()
  exif[0x010E], exif[0x011A], exif[0x8298] = "a" * 40, 72.0, "b" * 50
  whole, usual = exif.tobytes(), pixels(photo(), kind)
  lengths = whole.replace(struct.pack(">I", 41), b"\x7f\0\0\0")  # of a text
  assert lengths != whole
  with warnings.catch_warnings(record=True) as shown:
    warnings.resetwarnings()
    for damaged in (whole[:-60], whole[:30], lengths, whole[:6] + b"??" + whole[8:]):
      np.testing.assert_array_equal(pixels(photo(), kind, exif=damaged), usual)
  assert not shown


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_grey_and_palette_images_keep_their_colours(mode):
  image = photo(mode)
  np.testing.assert_array_equal(pixels(image), np.asarray(image.convert("RGB")))


def test_cmyk_and_lab_are_converted_to_rgb():
  found = pixels(photo("CMYK"), "TIFF")
  np.testing.assert_array_equal(found, np.asarray(photo()))
  white = Image.merge("LAB", [Image.new("L", (4, 4), value) for value in (255, 128, 128)])
  assert pixels(white, "TIFF").min() > 245


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparent_pixels_become_white(mode):
  """As RGB, transparency is one colour that the file names."""
  image, how = photo(), {}
  if mode in ("RGBA", "LA"):
    image = image.convert(mode)
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (0, 0, 15, 10))
    image.putalpha(alpha)
  elif mode == "P":
    image = image.convert("P", palette=Image.Palette.ADAPTIVE)
    how = {"transparency": image.getpixel((0, 0))}
  else:
    how = {"transparency": (250, 0, 0)}
  found = pixels(image, **how)
  assert (found[:10, :15] == 255).all() and found[10:, 15:].max() == 0


def test_half_transparent_pixels_become_half_white():
  found = pixels(Image.new("RGBA", (4, 4), (0, 0, 0, 128)))
  np.testing.assert_allclose(found, 127, atol=1)


@pytest.mark.parametrize("kind, dtype", [("PNG", "uint16"), ("TIFF", "int32"), ("TIFF", "float32")])
@pytest.mark.parametrize("low, high", [(0, 65535), (0, 4095), (30, 90)])
def test_16_bit_greys_are_scaled_and_not_clipped(kind, dtype, low, high):
  ramp = np.linspace(low, high, 61 * 4).round().reshape(61, 4).astype(dtype)
  found = pixels(Image.fromarray(ramp), kind)[..., 0].astype(int).ravel()
  assert (found[0], found[-1]) == (0, 255) and (np.diff(found) >= 0).all()
  assert len(set(found)) > 60


def test_negative_and_nan_values_are_handled():
  hounsfield = np.array([[-1000, 0, 1000]] * 3, np.float32)
  hounsfield[0, 0] = np.nan
  assert pixels(Image.fromarray(hounsfield), "TIFF")[1, :, 0].tolist() == [0, 128, 255]
  assert not pixels(Image.fromarray(np.full((3, 3), 7, np.uint16))).any()
  with pytest.raises(UserError, match="no pixel is a number"):
    pixels(Image.fromarray(np.full((3, 3), np.nan, np.float32)), "TIFF")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_a_file_that_ends_early_is_rejected(kind):
  noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
  content = encoded(Image.fromarray(noise), kind).getvalue()
  decode_image(io.BytesIO(content), "it")
  for part in (0, 1, len(content) // 2, len(content) - 60):
    with pytest.raises(
      UserError, match=r"^it: expected an image; got .* decoded: .* Fetch"
    ) as error:
      decode_image(io.BytesIO(content[:part]), "it")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (bytes(128) + b"DICM\x02\0", "a DICOM file. Export it as PNG or JPEG"),
    (b"%PDF-1.7\n", "a PDF file. Export it as PNG or JPEG"),
    (b"<html><body>404", "an HTML page. Fetch or export it again"),
    (
      b"version https://git-lfs.github.com/spec/v1\n",
      "a Git LFS pointer. Fetch or export it again",
    ),
    (b"", "an empty file. Fetch or export it again"),
    (b"a text", "a file of an unknown format. Fetch or export it again"),
  ],
)
def test_a_file_of_another_format_is_named(content, message, tmp_path):
  file = tmp_path / "x.jpg"
  file.write_bytes(content)
  for given in (file, io.BytesIO(content)):
    with pytest.raises(UserError) as error:
      decode_image(given, "it")
    assert str(error.value) == (
      f"it: expected an image; got a file that cannot be decoded: {message}, or remove its records."
    )


@pytest.mark.filterwarnings("ignore")  # Pillow's, of some
def test_damaged_files_are_read_or_rejected_in_one_line():
  rng = np.random.default_rng(0)
  exif = Image.Exif()
  exif[0x0112] = 6
  refused = 0
  for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"):
    content = np.frombuffer(encoded(photo(), kind, exif=exif.tobytes()).getvalue(), np.uint8)
    for _ in range(25):
      spoiled = content.copy()
      spoiled[rng.integers(0, min(len(content), 150), 4)] = rng.integers(0, 256, 4)
      try:
        decode_image(io.BytesIO(spoiled.tobytes()), "it")
      except UserError as error:
        refused += 1
        assert "\n" not in str(error)
  assert refused > 30


def bomb(width: int, height: int) -> io.BytesIO:
  """A PNG that claims a size and has no pixels."""

  def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

  head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
  parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
  return io.BytesIO(b"\x89PNG\r\n\x1a\n" + parts)


@pytest.mark.parametrize("side", [10_000, 14_000])  # Pillow warns of the first
def test_decompression_bombs_are_rejected_before_they_are_decoded(side):
  with pytest.raises(UserError, match="decompression bomb"):
    decode_image(bomb(side, side), "it")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_rejected_where_pillows_warning_is_not_an_error():
  with pytest.raises(UserError, match="10000 x 10000 pixels, perhaps a decompression bomb"):
    decode_image(bomb(10_000, 10_000), "it")
  with pytest.raises(UserError, match="decoded: image file is truncated"):
    decode_image(bomb(9_000, 9_000), "it")  # of a size that is taken


def test_a_very_long_image_is_rejected():
  assert pixels(Image.new("L", (100, 1))).shape == (1, 100, 3)
  with pytest.raises(UserError, match="101 x 1 pixels are no picture"):
    pixels(Image.new("L", (101, 1)))


def test_files_that_are_programs_are_not_run():
  with pytest.raises(UserError, match="EPS files are programs"):
    decode_image(encoded(photo(), "EPS"), "it")


def test_the_first_frame_of_an_animation_is_read():
  frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue")]
  found = pixels(frames[0], "GIF", save_all=True, append_images=frames[1:])
  assert found[3, 3].tolist() == [255, 0, 0]


@pytest.mark.parametrize("count", range(1, 8))
def test_a_montage_is_square_and_shows_every_image_completely(count):
  colours = [(40 + 30 * i, 255 - 30 * i, 100) for i in range(count)]
  sizes = [(30, 20), (20, 30), (10, 10)]
  parts = [Image.new("RGB", sizes[i % 3], colour) for i, colour in enumerate(colours)]
  picture = montage(parts)
  columns = next(n for n in (1, 2, 3) if n * n >= count)
  assert picture.size == (30 * columns, 30 * columns)
  found = np.asarray(picture).reshape(-1, 3)
  for i, colour in enumerate(colours):
    shown = (np.abs(found.astype(int) - colour).max(axis=1) == 0).sum()
    assert shown >= 0.95 * (30 * 30 if i % 3 == 2 else 30 * 20)  # whole, the small one enlarged
  rest = found[~np.isin(found, colours).all(axis=1)]
  assert (rest == 0).all() if count != 1 else True


def test_a_montage_of_large_images_stays_small_and_in_reading_order():
  large = [Image.new("RGB", (2000, 1500), colour) for colour in ("red", "lime", "blue")]
  picture = np.asarray(montage(large))
  assert picture.shape == (1024, 1024, 3)
  assert picture[256, 256].tolist() == [255, 0, 0] and picture[256, 768].tolist() == [0, 255, 0]
  assert picture[768, 256].tolist() == [0, 0, 255] and not picture[768, 768].any()


def test_two_images_are_centred_vertically():
  picture = np.asarray(montage([Image.new("RGB", (8, 8), "white")] * 2))
  assert picture.shape == (16, 16, 3)
  assert picture[4:12].min() == 255 and not picture[:4].any() and not picture[12:].any()


def test_a_path_and_its_content_give_the_same_image(tmp_path: Path):
  path = tmp_path / "x.png"
  photo().save(path)
  np.testing.assert_array_equal(decode_image(path, "it"), decode_image(encoded(photo()), "it"))
  with pytest.raises(UserError, match=r"none\.png: expected an image; there is no such file"):
    decode_image(tmp_path / "none.png", str(tmp_path / "none.png"))


def test_scaling_in_blocks_equals_scaling_at_once(monkeypatch):
  values = np.random.default_rng(0).normal(size=(37, 5)).astype(np.float32) * 1e4
  values[3], values[7, 2], values[36, 4] = np.nan, np.inf, -np.inf
  whole = pixels(Image.fromarray(values), "TIFF")
  monkeypatch.setattr("afspl_jax.data.deep_images._AT_ONCE", 13)
  np.testing.assert_array_equal(pixels(Image.fromarray(values), "TIFF"), whole)
  finite = values[np.isfinite(values)].astype(np.float64)
  low, high = finite.min(), finite.max()
  expected = np.round((np.where(np.isfinite(values), values, low) - low) / (high - low) * 255)
  np.testing.assert_array_equal(whole[..., 0], expected)
