"""CLIP features through a real CLIP: what they are, and the cache that keeps them."""

import contextlib
import dataclasses
import json
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from afspl_jax.config.experiment import Data
from afspl_jax.data import features
from afspl_jax.data.features import FeatureEncoder, default_cache
from afspl_jax.data.sources import open_source
from afspl_jax.errors import UserError
from afspl_jax.models.huggingface import weights
from afspl_jax.models.huggingface.locate import locate
from afspl_jax.models.huggingface.preprocessing import ImageProcessor, Tokenizer


def encoder(folder, cache, dtype=jnp.float32):
  clip = weights.load_vision_encoder(folder, dtype, dtype)
  parts = ImageProcessor(folder), Tokenizer(folder), weights.fingerprint(folder)
  return FeatureEncoder(clip, *parts, cache)


@pytest.fixture(scope="module")
def source(shapes_dir):
  return open_source(Data(dir=str(shapes_dir)), "train")


@pytest.fixture(scope="module")
def cache(tmp_path_factory, source, tiny_checkpoints):
  """A cache that holds the features of `source`."""
  folder = tmp_path_factory.mktemp("cache")
  encoder(tiny_checkpoints.clip, folder).images(source)
  return folder


@dataclasses.dataclass
class Blind:
  """A source whose images cannot be read."""

  source: object

  def __getattr__(self, name):
    return getattr(self.source, name)

  def __len__(self):
    return len(self.source)

  def __getitem__(self, index):
    return self.source[index]

  def images(self):
    return self.source.images()

  def load_image(self, key):
    raise AssertionError("an image was read")


def test_features_are_read_from_disk_the_second_time(source, tiny_checkpoints, cache):
  first = encoder(tiny_checkpoints.clip, cache).images(source)
  again = encoder(tiny_checkpoints.clip, cache).images(Blind(source))
  assert isinstance(again.tokens, np.memmap)
  assert first.tokens.shape == (80, 17, 16) and np.isfinite(first.joint).all()
  np.testing.assert_array_equal(first.tokens, again.tokens)
  np.testing.assert_array_equal(first.joint, again.joint)


def test_images_with_other_texts_are_not_encoded_again(source, tiny_checkpoints, cache):
  other = Blind(source)
  other.fingerprint = "of corrected captions"
  assert len(encoder(tiny_checkpoints.clip, cache).images(other).joint) == 80


def test_other_weights_splits_and_dtypes_never_share_features(
  source, shapes_dir, tiny_checkpoints, cache, tmp_path
):
  other = tmp_path / "clip"
  shutil.copytree(tiny_checkpoints.clip, other)
  clip = weights.load_vision_encoder(other)
  nnx.update(clip, jax.tree.map(lambda leaf: leaf + 0.01, nnx.state(clip)))
  weights.save_backbone(clip, other)
  for folder, dtype in ((other, jnp.float32), (tiny_checkpoints.clip, jnp.bfloat16)):
    with pytest.raises(AssertionError, match="an image was read"):
      encoder(folder, cache, dtype).images(Blind(source))
  test = open_source(Data(dir=str(shapes_dir)), "test")
  with pytest.raises(AssertionError, match="an image was read"):
    encoder(tiny_checkpoints.clip, cache).images(Blind(test))


def test_features_in_bfloat16_come_back_as_bfloat16(shapes_dir, tiny_checkpoints, tmp_path):
  test = open_source(Data(dir=str(shapes_dir)), "test")
  exact = encoder(tiny_checkpoints.clip, tmp_path).images(test)
  for _ in range(2):
    rough = encoder(tiny_checkpoints.clip, tmp_path, jnp.bfloat16).images(test)
    assert rough.joint.dtype == rough.tokens.dtype == jnp.bfloat16
    np.testing.assert_allclose(rough.joint.astype(np.float32), exact.joint, atol=0.1)
  assert np.asarray(jnp.asarray(rough.joint)).dtype == jnp.bfloat16


class Counted(Blind):
  """A source that counts what is read of it, and stops at an image."""

  def __init__(self, source, stop: str = "", error: type[BaseException] = KeyboardInterrupt):
    super().__init__(source)
    self.read, self.stop, self.error = [], stop, error

  def load_image(self, key):
    if key == self.stop:
      raise self.error(key)
    self.read.append(key)
    return self.source.load_image(key)


@pytest.fixture
def small_batches(monkeypatch):
  monkeypatch.setattr(features, "_BATCH", 16)


def test_an_interrupted_pass_is_resumed(source, tiny_checkpoints, tmp_path, cache, small_batches):
  expected = encoder(tiny_checkpoints.clip, cache).images(source)
  with pytest.raises(KeyboardInterrupt):
    encoder(tiny_checkpoints.clip, tmp_path).images(Counted(source, stop="train/70"))
  rest = Counted(source)
  whole = encoder(tiny_checkpoints.clip, tmp_path).images(rest)
  assert sorted(rest.read) == sorted(
    source.images()[48:]
  )  # a batch was under way, one in the making
  np.testing.assert_allclose(whole.joint, expected.joint, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(whole.tokens, expected.tokens, rtol=1e-4, atol=1e-4)
  (folder,) = tmp_path.iterdir()
  assert folder.suffix == ""


def test_the_first_bad_image_is_named_and_earlier_features_are_kept(
  source, tiny_checkpoints, tmp_path, small_batches
):
  for _ in range(2):
    bad = Counted(source, stop="train/69", error=UserError)
    with pytest.raises(UserError, match=r"^train/69$"):  # the source's own words
      encoder(tiny_checkpoints.clip, tmp_path).images(bad)
  assert min(int(key.rpartition("/")[2]) for key in bad.read) == 48  # of the last attempt


def test_crops_of_another_size_than_the_weights_need_are_rejected(tiny_checkpoints, tmp_path):
  folder = tmp_path / "clip"
  shutil.copytree(tiny_checkpoints.clip, folder)
  file = folder / "preprocessor_config.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | {"crop_size": 32}))
  with pytest.raises(UserError, match=r"expected images of 64 x 64 .*; got 32 x 32\."):
    encoder(folder, tmp_path)


@contextlib.contextmanager
def no_room(size: int):
  """Writing a file beyond `size` bytes fails, as on a full disk."""
  old = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(source, tiny_checkpoints, tmp_path):
  one = encoder(tiny_checkpoints.clip, tmp_path)
  with no_room(70_000), pytest.raises(UserError, match=r"feature cache: .* Make room") as error:
    one.images(source)  # 87,040 bytes of tokens
  assert "\n" not in str(error.value)
  assert not list(tmp_path.iterdir())
  assert one.images(source).joint.any(axis=1).all()


def test_a_cache_that_cannot_be_written_is_one_clear_line(source, tiny_checkpoints, tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(
    UserError, match=r"feature cache: expected a folder .*XDG_CACHE_HOME"
  ) as error:
    encoder(tiny_checkpoints.clip, tmp_path / "file" / "cache").images(source)
  assert "\n" not in str(error.value)


def test_the_default_cache_follows_xdg_cache_home(monkeypatch, tmp_path):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  assert default_cache() == tmp_path / "afspl_jax" / "features"
  monkeypatch.delenv("XDG_CACHE_HOME")
  assert default_cache().parts[-3:] == (".cache", "afspl_jax", "features")


# Texts


TEXTS = [f"is there a {'red ' * (i % 40)}square at {i} ?" for i in range(131)]  # over two batches


def test_texts_of_all_lengths_are_returned_in_order(tiny_checkpoints, cache):
  found = encoder(tiny_checkpoints.clip, cache).texts(TEXTS)
  ids, mask = Tokenizer(tiny_checkpoints.clip).tokenize(TEXTS, 77)
  assert len(set(mask.sum(1))) > 30
  clip = weights.load_vision_encoder(tiny_checkpoints.clip)
  encode = nnx.jit(lambda clip, ids, mask: clip.encode_text(ids, mask))
  expected = encode(clip, jnp.asarray(ids), jnp.asarray(mask))
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_sorting_texts_in_parts_gives_the_same_features(tiny_checkpoints, tmp_path, monkeypatch):
  whole = encoder(tiny_checkpoints.clip, tmp_path / "a").texts(TEXTS)
  monkeypatch.setattr(features, "_SORTED", 64)
  parts = encoder(tiny_checkpoints.clip, tmp_path / "b").texts(TEXTS)
  np.testing.assert_allclose(whole, parts, rtol=1e-4, atol=1e-5)


def test_only_the_same_texts_in_the_same_order_are_read_from_the_cache(tiny_checkpoints, tmp_path):
  first = encoder(tiny_checkpoints.clip, tmp_path).texts(["a", "b"])
  blind = encoder(tiny_checkpoints.clip, tmp_path)
  blind._text = None  # cannot encode
  again = blind.texts(["a", "b"])
  assert isinstance(again, np.memmap)
  np.testing.assert_array_equal(first, again)
  for others in (["b", "a"], ["a"], ["a b"], ["ab", ""]):
    with pytest.raises(TypeError):
      blind.texts(others)
  swapped = encoder(tiny_checkpoints.clip, tmp_path).texts(["b", "a"])
  np.testing.assert_allclose(swapped[::-1], first, rtol=1e-4, atol=1e-5)
  assert encoder(tiny_checkpoints.clip, tmp_path).texts([]).shape == (0, 16)


def test_texts_in_bfloat16_come_back_as_bfloat16(tiny_checkpoints, tmp_path):
  exact = encoder(tiny_checkpoints.clip, tmp_path).texts(TEXTS[:3])
  rough = encoder(tiny_checkpoints.clip, tmp_path, jnp.bfloat16).texts(TEXTS[:3])
  assert rough.dtype == jnp.bfloat16
  np.testing.assert_allclose(rough.astype(np.float32), exact, atol=0.1)


def test_directions_separate_questions_whose_features_are_almost_equal(tmp_path):
  shipped = encoder(locate("tiny", "clip"), tmp_path)
  texts = ["what colour is the star ?", "how many shapes are there ?", "describe the picture ."]
  found = shipped.texts(texts)
  found = found / np.linalg.norm(found, axis=1, keepdims=True)
  directions = shipped.directions(texts)
  np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, rtol=1e-5)
  others = ~np.eye(3, dtype=bool)
  assert (found @ found.T)[others].min() > 0.9
  assert (directions @ directions.T)[others].max() < 0.7
  np.testing.assert_allclose(shipped.directions(texts[::-1]), directions[::-1], atol=1e-5)


@pytest.mark.parametrize("damage", ["cut", "other", "garbage", "gone", "objects"])
def test_a_damaged_cache_is_an_error_that_names_the_file(damage, tiny_checkpoints, tmp_path):
  made = encoder(tiny_checkpoints.clip, tmp_path)
  features = np.array(made.texts(["a", "b"]))  # not the map of a file that is to be damaged
  (file,) = tmp_path.glob("*/texts.npy")
  if damage == "cut":
    file.write_bytes(file.read_bytes()[:-4])
  elif damage == "other":
    np.save(file, np.zeros((3, features.shape[1]), np.float32))
  elif damage == "garbage":
    file.write_bytes(b"not an array")
  elif damage == "gone":
    file.unlink()
  else:
    with file.open("wb") as out:  # a file that only unpickling could read
      header = {"descr": "|O", "fortran_order": False, "shape": features.shape}
      np.lib.format.write_array_header_1_0(out, header)
      out.write(b"\0" * 64)
  with pytest.raises(
    UserError, match=r"feature cache: expected .* got .* Delete the folder"
  ) as error:
    made.texts(["a", "b"])
  assert str(file) in str(error.value) and "\n" not in str(error.value)
  shutil.rmtree(file.parent)
  np.testing.assert_array_equal(made.texts(["a", "b"]), features)
