import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from afspl_jax.errors import UserError
from afspl_jax.models.huggingface.locate import TINY
from afspl_jax.models.huggingface.preprocessing import ImageProcessor, Tokenizer

MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])


@pytest.fixture(scope="module")
def golden(hf_data) -> list[dict]:
  return json.loads((hf_data / "tokenizer_golden.json").read_text())


@pytest.fixture(scope="module", params=["t5", "clip"])
def tokenizer(request, hf_data):
  return request.param, Tokenizer(hf_data / request.param)


def test_ids_equal_the_recorded_ones(tokenizer, golden):
  name, tokenizer = tokenizer
  ids, mask = tokenizer.tokenize([entry["text"] for entry in golden], 200)
  assert ids.dtype == np.int32 and mask.dtype == bool
  for row, seen, entry in zip(ids, mask, golden, strict=True):
    # t5_spm_ids are spiece.model's. They differ on one text that has two best segmentations, and on
    # one with names of control tokens, which are text for sentencepiece and for us.
    spm = name == "t5" and "<extra_id_0>" in entry["text"]
    expected = entry["t5_spm_ids" if spm else f"{name}_ids"]
    assert row[seen].tolist() == expected
    assert seen[: len(expected)].all()
    assert (row[~seen] == tokenizer.pad_id).all()


def test_truncation_keeps_the_end(tokenizer):
  _, tokenizer = tokenizer
  ids, mask = tokenizer.tokenize(["one two three four five six seven eight", "one"], 6)
  assert ids.shape == mask.shape == (2, 6)
  assert ids[0, -1] == tokenizer.eos_id and mask[0].all()
  assert not mask[1, -1]
  assert ids.max() < tokenizer.vocab_size


def test_no_texts_give_no_rows(tokenizer):
  ids, mask = tokenizer[1].tokenize([], 6)
  assert ids.shape == mask.shape == (0, 6)


def test_decoding_to_text_stops_at_the_end_token(tokenizer):
  _, tokenizer = tokenizer
  ids, _ = tokenizer.tokenize(["a red cat", "two dogs on a mat"], 12)
  assert tokenizer.decode(ids) == ["a red cat", "two dogs on a mat"]
  ids[0, -1] = ids[0, 1]
  assert tokenizer.decode(ids)[0] == "a red cat"
  assert tokenizer.decode(ids[:1, :2]) != [""]


def test_missing_tokenizer_files_are_named(tmp_path, hf_data):
  with pytest.raises(UserError) as error:
    Tokenizer(tmp_path)
  for part in (str(tmp_path), "tokenizer.json", "vocab.json and merges.txt", "an empty folder"):
    assert part in str(error.value)
  shutil.copy(hf_data / "clip" / "vocab.json", tmp_path)
  with pytest.raises(UserError, match=r"got vocab\.json"):
    Tokenizer(tmp_path)
  with pytest.raises(UserError, match="no such folder"):
    Tokenizer(tmp_path / "nowhere")


def test_tokenizer_without_an_end_is_rejected(tmp_path, hf_data):
  for path in (hf_data / "t5").iterdir():
    shutil.copyfile(path, tmp_path / path.name)
  parsed = json.loads((tmp_path / "tokenizer.json").read_text())
  parsed["post_processor"] = None
  (tmp_path / "tokenizer.json").write_text(json.dumps(parsed))
  with pytest.raises(ValueError, match="expected a tokenizer that ends texts"):
    Tokenizer(tmp_path)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
@pytest.mark.parametrize("size", [(320, 240), (224, 224), (100, 150)])
def test_pixels_equal_clips_steps_computed_by_hand(hf_data, mode, size):
  noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
  image = Image.fromarray(noise).convert(mode)
  pixels = ImageProcessor(hf_data / "clip")([image])
  scale = 224 / min(size)
  # Bicubic by the shorter side, the middle square, then channel statistics (openai/CLIP).
  wide, high = (max(224, int(side * scale)) for side in size)
  resized = image.convert("RGB").resize((wide, high), Image.Resampling.BICUBIC)
  left, top = (wide - 224) // 2, (high - 224) // 2
  square = np.asarray(resized)[top : top + 224, left : left + 224]
  expected = (square / 255 - MEAN) / STD
  assert pixels.shape == (1, 224, 224, 3) and pixels.dtype == np.float32
  np.testing.assert_allclose(pixels[0], expected, atol=1e-5)


SETTINGS = {
  "as OpenAI's": {},
  "as later files": {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}},
  "not square": {"size": {"height": 40, "width": 70}, "crop_size": [30, 50], "resample": 2},
  "larger crop": {"size": 31, "crop_size": {"height": 48, "width": 41}},
  "no crop": {"do_center_crop": False, "size": {"height": 33, "width": 44}},
  "no resizing": {"do_resize": False, "crop_size": 64},
  "no numbers": {"do_rescale": False, "do_normalize": False, "size": 32, "crop_size": 32},
  "others": {"rescale_factor": 0.01, "image_mean": 0.5, "image_std": [0.5, 0.25, 2], "size": 64},
}


@pytest.fixture(scope="module")
def photos(hf_data) -> list[Image.Image]:
  """Real ones, as they come and in other modes, tiny, and of extreme aspect ratios."""
  files = sorted((hf_data.parent / "coco_cc" / "images").iterdir())[:6]
  files += sorted((hf_data.parent / "vqa_rad" / "images").iterdir())[:2]
  found = [Image.open(file) for file in files]
  whole = found[0].convert("RGB")
  shade = whole.convert("L")
  found += [whole.convert(mode) for mode in ("L", "1", "P", "CMYK", "YCbCr", "HSV", "I", "F")]
  clear = whole.copy()
  clear.putalpha(shade)
  found += [clear, clear.convert("LA"), clear.convert("RGBa"), clear.convert("P")]
  marked = whole.copy()
  marked.info["transparency"] = marked.getpixel((0, 0))  # as of a PNG with a colour for clear
  found += [marked, Image.fromarray(np.arange(3000, dtype=np.uint16).reshape(50, 60))]
  sizes = [(1, 1), (2, 3), (224, 224), (223, 225), (301, 7), (5, 333), (640, 480), (449, 301)]
  return found + [whole.resize(size) for size in sizes]


@pytest.mark.parametrize("name", SETTINGS)
def test_pixels_equal_those_of_transformers_bit_for_bit(hf_data, photos, tmp_path, name):
  from transformers import CLIPImageProcessorPil

  raw = json.loads((hf_data / "clip" / "preprocessor_config.json").read_text())
  (tmp_path / "preprocessor_config.json").write_text(json.dumps(raw | SETTINGS[name]))
  theirs, ours = CLIPImageProcessorPil.from_pretrained(tmp_path), ImageProcessor(tmp_path)
  for photo in photos:
    (expected,) = theirs([photo], return_tensors="np")["pixel_values"]
    got = ours([photo])
    assert got.dtype == np.float32 and got.shape == (1, *ours.size, 3)
    message = f"{photo.mode} {photo.size}"
    np.testing.assert_array_equal(got[0], np.moveaxis(expected, 0, -1), message, strict=False)


def test_missing_settings_have_the_defaults_of_transformers(photos, tmp_path):
  from transformers import CLIPImageProcessorPil

  (tmp_path / "preprocessor_config.json").write_text("{}")
  (expected,) = CLIPImageProcessorPil()([photos[0]], return_tensors="np")["pixel_values"]
  got = ImageProcessor(tmp_path)([photos[0]])
  np.testing.assert_array_equal(got[0], np.moveaxis(expected, 0, -1))


@pytest.mark.parametrize(
  "setting",
  [
    {"size": {"longest_edge": 224}},
    {"size": {"shortest_edge": 0}},
    {"size": True},
    {"crop_size": [224]},
    {"crop_size": {"height": 224, "width": "224"}},
    {"do_resize": "yes"},
    {"do_center_crop": None},
    {"resample": 9},
    {"image_mean": [0.5, 0.5]},
    {"image_std": [0.5, 0.5, 0]},
    {"rescale_factor": "a lot"},
  ],
)
def test_an_impossible_image_setting_is_named(hf_data, tmp_path, setting):
  raw = json.loads((hf_data / "clip" / "preprocessor_config.json").read_text())
  (tmp_path / "preprocessor_config.json").write_text(json.dumps(raw | setting))
  ((name, value),) = setting.items()
  with pytest.raises(UserError) as error:
    ImageProcessor(tmp_path)
  assert f'"{name}" must be' in str(error.value) and repr(value) in str(error.value)
  assert "\n" not in str(error.value)


def test_null_settings_have_the_defaults(hf_data, tmp_path):
  raw = json.loads((hf_data / "clip" / "preprocessor_config.json").read_text())
  image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 50, 3), np.uint8))
  expected = ImageProcessor(hf_data / "clip")([image])
  null = dict.fromkeys(name for name in raw if not name.startswith("do_"))
  sizes = {
    "size": {"shortest_edge": 224, "height": None},
    "crop_size": {"height": 224, "width": 224},
  }
  for changed in (null, null | sizes):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(raw | changed))
    np.testing.assert_array_equal(ImageProcessor(tmp_path)([image]), expected)


def test_an_error_does_not_suggest_the_rejected_value(tmp_path):
  text = json.dumps({"crop_size": {"shortest_edge": 224}})  # transformers takes none either
  (tmp_path / "preprocessor_config.json").write_text(text)
  with pytest.raises(UserError, match=r'"crop_size" must be \{"height": n, "width": n\} or n, n'):
    ImageProcessor(tmp_path)


def test_images_of_several_sizes_are_rejected(tmp_path):
  (tmp_path / "preprocessor_config.json").write_text('{"do_center_crop": false}')
  with pytest.raises(UserError, match=r'"size" must be a height and a width where .* not cropped'):
    ImageProcessor(tmp_path)


def test_missing_or_foreign_image_settings_are_named(tmp_path):
  with pytest.raises(UserError, match=r"expected preprocessor_config\.json; got an empty"):
    ImageProcessor(tmp_path)
  for text, wanted in (
    (
      '{"image_processor_type": "ViTImageProcessor"}',
      "must be a CLIP one; got 'ViTImageProcessor'",
    ),
    ("{", "expected JSON; got: "),
    ("[]", "expected a JSON object; got list"),
  ):
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(UserError, match=wanted):
      ImageProcessor(tmp_path)


def test_torch_is_not_imported_where_it_is_installed(tmp_path, hf_data):
  for name, config in (("t5", "flan-t5-small"), ("clip", "clip-vit-base-patch32")):
    folder = shutil.copytree(hf_data / name, tmp_path / name)
    (folder / "tokenizer_config.json").unlink()  # the model's config says what it is
    (folder / f"{config}.config.json").rename(folder / "config.json")
  code = """
import sys
from pathlib import Path
from afspl_jax.models.huggingface.locate import TINY
from afspl_jax.models.huggingface.preprocessing import Tokenizer
folders = [base / name for base in (TINY, Path(sys.argv[1])) for name in ("t5", "clip")]
ours = [Tokenizer(folder) for folder in folders]
assert "torch" not in sys.modules
from transformers import AutoTokenizer
for folder, tokenizer in zip(folders, ours):
  assert type(tokenizer._tokenizer) is type(AutoTokenizer.from_pretrained(folder))
  assert type(tokenizer._tokenizer).__name__ in ("T5Tokenizer", "CLIPTokenizer")
"""
  command = [sys.executable, "-c", code, str(tmp_path)]
  result = subprocess.run(command, capture_output=True, text=True, check=False)
  assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("said", ["{", "[]"])
def test_a_damaged_tokenizer_config_is_rejected(tmp_path, said):
  shutil.copytree(TINY / "t5", tmp_path, dirs_exist_ok=True)
  (tmp_path / "tokenizer_config.json").write_text(said)
  with pytest.raises(UserError, match=f"{tmp_path}: expected the files of a tokenizer; got "):
    Tokenizer(tmp_path)


def test_processing_works_where_torch_is_not_installed(hf_data):
  code = """
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec

def without_torch(name, path=None, target=None):
  return None if name.partition(".")[0] in ("torch", "torchvision") else find(name, path, target)

PathFinder.find_spec = without_torch
from PIL import Image
from afspl_jax.models.huggingface.preprocessing import ImageProcessor, Tokenizer
for name in ("t5", "clip"):
  ids, mask = Tokenizer(f"{sys.argv[1]}/{name}").tokenize(["a cat"], 8)
  assert ids.shape == (1, 8) and mask.any()
assert ImageProcessor(f"{sys.argv[1]}/clip")([Image.new("RGB", (30, 40))]).shape == (1, 224, 224, 3)
# What reads images in transformers takes seconds to import.
print([name for name in ("torch", "transformers.image_transforms") if name in sys.modules])
"""
  command = [sys.executable, "-c", code, str(hf_data)]
  result = subprocess.run(command, capture_output=True, text=True, check=False)
  assert result.returncode == 0, result.stderr
  assert result.stdout.strip() == "[]"
