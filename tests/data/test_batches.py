"""From examples and images to the arrays of a step, through a real CLIP and the feature cache."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from afspl_jax.backbones import weights
from afspl_jax.backbones.processing import ImageProcessor, Tokenizer
from afspl_jax.config import Data
from afspl_jax.data import features
from afspl_jax.data.batches import Split
from afspl_jax.data.features import FeatureEncoder, default_cache
from afspl_jax.data.sources import open_source
from afspl_jax.errors import UserError


def encoder(folder, cache, dtype=jnp.float32):
  clip = weights.load_clip(folder, dtype, dtype)
  parts = ImageProcessor(folder), Tokenizer(folder), weights.fingerprint(folder)
  return FeatureEncoder(clip, *parts, cache)


@pytest.fixture(scope="module")
def source(shapes_dir):
  return open_source("shapes", "train", str(shapes_dir))


@pytest.fixture(scope="module")
def cache(tmp_path_factory, source, tiny_checkpoints):
  """A cache that holds the features of `source`."""
  folder = tmp_path_factory.mktemp("cache")
  encoder(tiny_checkpoints.clip, folder).images(source)
  return folder


@pytest.fixture(scope="module")
def split(source, tiny_checkpoints, cache):
  config = Data(instruction_length=12, target_length=20)
  return Split(
    source, encoder(tiny_checkpoints.clip, cache), Tokenizer(tiny_checkpoints.t5), config
  )


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


# Batches


def words(split, tiny_checkpoints, ids) -> list[str]:
  return Tokenizer(tiny_checkpoints.t5).decode(np.asarray(ids))


def test_a_batch_holds_what_its_examples_say(split, tiny_checkpoints):
  rows = np.array([3, 0, 11, 40])
  batch = split.batch(rows, 4)
  asked, said = (words(split, tiny_checkpoints, x) for x in (batch.instruction, batch.targets))
  for row, question, text in zip(rows, asked, said, strict=True):
    example = split.examples[row]
    assert question == (example.question or "describe the picture .")
    cut = example.references[0].split()[:19]  # one token is the end
    assert text.split() == cut
  assert {bool(split.examples[row].question) for row in rows} == {True, False}
  assert batch.targets_mask.sum(1).tolist() == [
    min(20, len(split.examples[row].references[0].split()) + 1) for row in rows
  ]
  assert batch.tokens.shape == (4, 17, 16) and batch.image.shape == batch.text.shape == (4, 16)
  assert batch.instruction.shape == (4, 12) and batch.targets.shape == (4, 20)


def test_features_are_clips_own_of_that_image_and_instruction(split, source, tiny_checkpoints):
  clip = weights.load_clip(tiny_checkpoints.clip)
  processor, tokenizer = ImageProcessor(tiny_checkpoints.clip), Tokenizer(tiny_checkpoints.clip)
  rows = np.array([5, 33])
  batch = split.batch(rows, 2)
  images = [source.load_image(split.examples[row].image) for row in rows]
  tokens, joint = clip.encode_image(jnp.asarray(processor(images)))
  texts = [split.examples[row].question or "describe the picture ." for row in rows]
  ids, mask = tokenizer.tokenize(texts, 77)
  text = clip.encode_text(jnp.asarray(ids), jnp.asarray(mask))
  for ours, expected in ((batch.tokens, tokens), (batch.image, joint), (batch.text, text)):
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_examples_of_one_image_share_its_features(split):
  pairs = [
    (i, i + 1)
    for i in range(len(split) - 1)
    if split.examples[i].image == split.examples[i + 1].image
  ]
  batch = split.batch(np.array(pairs[0]), 2)
  np.testing.assert_array_equal(batch.image[0], batch.image[1])
  assert (batch.text[0] != batch.text[1]).any()


def test_rows_that_fill_up_a_batch_count_nowhere(split):
  full, padded = split.batch(np.array([4, 9]), 2), split.batch(np.array([4, 9]), 5)
  assert not padded.targets_mask[2:].any() and padded.targets_mask[:2].any(1).all()
  for ours, expected in zip(padded, full, strict=True):
    assert ours.shape[0] == 5
    np.testing.assert_array_equal(ours[:2], expected)


def test_in_order_gives_every_example_once(split):
  indices = list(range(3, 20))
  parts = list(split.in_order(indices, 8))
  assert np.concatenate([rows for rows, _ in parts]).tolist() == indices
  assert [batch.targets_mask.any(1).sum() for _, batch in parts] == [8, 8, 1]
  assert {batch.tokens.shape[0] for _, batch in parts} == {8}


def identify(split, batch) -> list[tuple[int, int]]:
  """Example and reference of every row of stacked batches, told by its arrays."""
  known = {}
  for i, example in enumerate(split.examples):
    for j in range(len(example.references)):
      one = split.batch(np.array([i]), 1, np.array([j]))
      known.setdefault(b"".join(part[0].tobytes() for part in one), (i, j))
  flat = [part.reshape(-1, *part.shape[2:]) for part in batch]
  return [known[b"".join(part[r].tobytes() for part in flat)] for r in range(len(flat[0]))]


@pytest.fixture(scope="module")
def mine(split):
  """A client's captioned examples, no two alike."""
  return np.array([i for i, e in enumerate(split.examples) if not e.question][:10])


def test_every_example_is_seen_before_any_comes_again(split, mine):
  batch = split.local_batches(mine, 6, 4, np.random.default_rng(0))
  assert {part.shape[:2] for part in batch} == {(6, 4)}
  order = [example for example, _ in identify(split, batch)]
  assert sorted(order[:10]) == sorted(order[10:20]) == sorted(mine)
  assert order[:10] != sorted(mine) and order[:10] != order[10:20]
  assert len(set(order[20:])) == 4 and set(order) == set(mine)


def test_references_vary_and_are_the_examples_own(split, mine):
  batch = split.local_batches(mine, 30, 10, np.random.default_rng(0))
  seen: dict[int, set[int]] = {}
  for example, reference in identify(split, batch):
    seen.setdefault(example, set()).add(reference)
  assert len(seen) == 10
  assert sum(len(references) > 2 for references in seen.values()) > 6


def test_batches_follow_from_the_generator_alone(split, mine):
  first, again, other = (
    split.local_batches(mine, 3, 4, np.random.default_rng(seed)) for seed in (5, 5, 6)
  )
  for a, b in zip(first, again, strict=True):
    np.testing.assert_array_equal(a, b)
  assert any((a != b).any() for a, b in zip(first, other, strict=True))


def test_a_client_with_fewer_examples_than_a_batch_repeats_them(split, mine):
  order = [
    example
    for example, _ in identify(split, split.local_batches(mine[:3], 1, 8, np.random.default_rng(0)))
  ]
  assert sorted(order[:3]) == sorted(order[3:6]) == sorted(mine[:3])


# The feature cache


def test_features_are_read_from_disk_the_second_time(source, tiny_checkpoints, cache):
  first = encoder(tiny_checkpoints.clip, cache).images(source)
  again = encoder(tiny_checkpoints.clip, cache).images(Blind(source))
  assert isinstance(again.tokens, np.memmap)
  assert first.tokens.shape == (80, 17, 16) and np.isfinite(first.joint).all()
  np.testing.assert_array_equal(first.tokens, again.tokens)
  np.testing.assert_array_equal(first.joint, again.joint)


def test_other_weights_splits_and_dtypes_never_share_features(
  source, shapes_dir, tiny_checkpoints, cache, tmp_path
):
  other = tmp_path / "clip"
  shutil.copytree(tiny_checkpoints.clip, other)
  clip = weights.load_clip(other)
  nnx.update(clip, jax.tree.map(lambda leaf: leaf + 0.01, nnx.state(clip)))
  weights.save(clip, other)
  for folder, dtype in ((other, jnp.float32), (tiny_checkpoints.clip, jnp.bfloat16)):
    with pytest.raises(AssertionError, match="an image was read"):
      encoder(folder, cache, dtype).images(Blind(source))
  test = open_source("shapes", "test", str(shapes_dir))
  with pytest.raises(AssertionError, match="an image was read"):
    encoder(tiny_checkpoints.clip, cache).images(Blind(test))


def test_features_in_bfloat16_come_back_as_bfloat16(shapes_dir, tiny_checkpoints, tmp_path):
  test = open_source("shapes", "test", str(shapes_dir))
  exact = encoder(tiny_checkpoints.clip, tmp_path).images(test)
  for _ in range(2):
    rough = encoder(tiny_checkpoints.clip, tmp_path, jnp.bfloat16).images(test)
    assert rough.joint.dtype == rough.tokens.dtype == jnp.bfloat16
    np.testing.assert_allclose(rough.joint.astype(np.float32), exact.joint, atol=0.1)
  assert np.asarray(jnp.asarray(rough.joint)).dtype == jnp.bfloat16


def test_a_half_written_cache_is_never_read(source, tiny_checkpoints, tmp_path):
  class Interrupted(Blind):
    def load_image(self, key):
      if key == "70":
        raise KeyboardInterrupt
      return self.source.load_image(key)

  with pytest.raises(KeyboardInterrupt):
    encoder(tiny_checkpoints.clip, tmp_path).images(Interrupted(source))
  assert list(tmp_path.rglob("tokens.npy"))  # it did begin
  whole = encoder(tiny_checkpoints.clip, tmp_path).images(source)
  assert np.abs(whole.joint).sum(1).min() > 0
  again = encoder(tiny_checkpoints.clip, tmp_path).images(Blind(source))
  np.testing.assert_array_equal(whole.joint, again.joint)


def test_a_cache_that_cannot_be_written_is_one_clear_line(source, tiny_checkpoints, tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(
    UserError, match=r"feature cache: expected a folder .*XDG_CACHE_HOME"
  ) as error:
    encoder(tiny_checkpoints.clip, tmp_path / "file" / "cache").images(source)
  assert "\n" not in str(error.value)


def test_the_cache_lies_where_the_system_says(monkeypatch, tmp_path):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  assert default_cache() == tmp_path / "afspl_jax" / "features"
  monkeypatch.delenv("XDG_CACHE_HOME")
  assert default_cache().parts[-3:] == (".cache", "afspl_jax", "features")


def test_equal_texts_are_encoded_once_and_more_than_a_batch_is_no_limit(tiny_checkpoints, cache):
  texts = [f"what colour is {i} ?" for i in range(features._BATCH + 3)]
  found = encoder(tiny_checkpoints.clip, cache).texts([*texts, *texts])
  assert set(found) == set(texts)
  alone = encoder(tiny_checkpoints.clip, cache).texts(texts[-1:])
  np.testing.assert_allclose(found[texts[-1]], alone[texts[-1]], rtol=1e-5, atol=1e-6)
