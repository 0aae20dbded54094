"""From examples and images to the arrays of a step, through a real CLIP."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from afspl_jax.models.huggingface import weights
from afspl_jax.models.huggingface.preprocessing import ImageProcessor, Tokenizer
from afspl_jax.types import Example


@pytest.fixture(scope="module")
def split(make_split):
  return make_split()


@pytest.fixture(scope="module")
def contrasted(make_split):
  return make_split(contrast=True)


def words(split, tiny_checkpoints, ids) -> list[str]:
  return Tokenizer(tiny_checkpoints.t5).decode(np.asarray(ids))


def test_a_batch_has_the_texts_of_its_examples(split, tiny_checkpoints):
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
  assert batch.instruction.shape == (4, 10) and batch.targets.shape == (4, 20)


def directions(tiny_checkpoints, texts):
  """By CLIP alone: unit features less the mean of those of all words, of unit length again."""
  clip = weights.load_vision_encoder(tiny_checkpoints.clip)
  tokenizer = Tokenizer(tiny_checkpoints.clip)
  encode = nnx.jit(lambda clip, ids, mask: clip.encode_text(ids, mask))

  def unit_features(texts):
    ids, mask = tokenizer.tokenize(texts, 77)
    features = np.asarray(encode(clip, jnp.asarray(ids), jnp.asarray(mask)), np.float64)
    return features / np.linalg.norm(features, axis=1, keepdims=True)

  every = [
    tokenizer.decode(np.array([[i]], np.int32))[0].strip() for i in range(tokenizer.vocab_size)
  ]
  offset = unit_features(texts) - unit_features(sorted(set(every) - {""})).mean(axis=0)
  return offset / np.linalg.norm(offset, axis=1, keepdims=True)


def test_features_are_those_of_the_examples_image_and_instruction(split, source, tiny_checkpoints):
  clip = weights.load_vision_encoder(tiny_checkpoints.clip)
  processor = ImageProcessor(tiny_checkpoints.clip)
  rows = np.array([5, 33])
  batch = split.batch(rows, 2)
  images = [source.load_image(split.examples[row].image) for row in rows]
  encode = nnx.jit(lambda clip, pixels: clip.encode_image(pixels))
  tokens, joint = encode(clip, jnp.asarray(processor(images)))
  texts = [split.examples[row].question or "describe the picture ." for row in rows]
  text = directions(tiny_checkpoints, texts)
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


def test_rows_that_fill_up_a_batch_are_masked(split):
  full, padded = split.batch(np.array([4, 9]), 2), split.batch(np.array([4, 9]), 5)
  assert not padded.targets_mask[2:].any() and padded.targets_mask[:2].any(1).all()
  for ours, expected in zip(padded, full, strict=True):
    assert ours.shape[0] == 5
    np.testing.assert_array_equal(ours[:2], expected)


def test_inputs_are_equal_where_image_and_instruction_are(split):
  rows, examples = list(range(len(split))), split.examples
  inputs, asked = split.inputs(rows), split.inputs(rows, see_image=False)
  same_image = np.array([[a.image == b.image for a in examples] for b in examples])
  same_question = np.array([[a.question == b.question for a in examples] for b in examples])
  np.testing.assert_array_equal(inputs[:, None] == inputs, same_image & same_question)
  np.testing.assert_array_equal(asked[:, None] == asked, same_question)


def test_target_lengths_are_those_of_the_first_references(split):
  rows = [7, 0, 12]
  expected = split.batch(np.array(rows), 3).targets_mask.sum(axis=1)
  np.testing.assert_array_equal(split.target_lengths(rows), expected)


def test_in_order_gives_every_example_once(split):
  indices = list(range(3, 20))
  parts = list(split.in_order(indices, 8))
  assert np.concatenate([rows for rows, _ in parts]).tolist() == indices
  assert [batch.targets_mask.any(1).sum() for _, batch in parts] == [8, 8, 1]
  assert {batch.tokens.shape[0] for _, batch in parts} == {8}


def identify(split, batch) -> list[tuple[int, int]]:
  """Example and reference of every row of stacked batches, told by its inputs and targets."""
  arrays, (steps, size) = ("tokens", "image", "instruction", "targets"), batch.personal.shape
  known = {}
  for i, example in enumerate(split.examples):
    for j in range(len(example.references)):
      one = split.batch(np.array([i]), 1, np.array([j]))
      known.setdefault(b"".join(getattr(one, name)[0].tobytes() for name in arrays), (i, j))
  flat = [getattr(batch, name).reshape(steps * size, -1) for name in arrays]
  return [known[b"".join(part[r].tobytes() for part in flat)] for r in range(len(flat[0]))]


@pytest.fixture(scope="module")
def mine(split):
  """A client's captioned examples, no two alike."""
  return np.array([i for i, e in enumerate(split.examples) if not e.question][:10])


def test_no_example_repeats_before_all_have_come(split, mine):
  batch = split.local_batches(mine, 6, 4, np.random.default_rng(0))
  assert {part.shape[:2] for part in batch} == {(6, 4)}
  order = [example for example, _ in identify(split, batch)]
  assert sorted(order[:10]) == sorted(order[10:20]) == sorted(mine)
  assert order[:10] != sorted(mine) and order[:10] != order[10:20]
  assert len(set(order[20:])) == 4 and set(order) == set(mine)


def test_references_vary_and_belong_to_the_example(split, mine):
  batch = split.local_batches(mine, 30, 10, np.random.default_rng(0))
  seen: dict[int, set[int]] = {}
  for example, reference in identify(split, batch):
    seen.setdefault(example, set()).add(reference)
  assert len(seen) == 10
  assert sum(len(references) > 2 for references in seen.values()) > 6


def test_only_the_generator_determines_the_batches(split, mine):
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


# Who may use the local prompt


def test_rows_are_personal_only_on_request_and_never_if_they_fill_up(split):
  rows = np.array([4, 9, 2])
  assert not split.batch(rows, 5).personal.any()
  assert split.batch(rows, 5, personal=True).personal.tolist() == [True] * 3 + [False] * 2
  some = np.array([True, False, True])
  assert split.batch(rows, 5, personal=some).personal.tolist() == [*some, False, False]
  for asked in (False, True):
    parts = [batch.personal.tolist() for _, batch in split.in_order([4, 9, 2], 2, personal=asked)]
    assert parts == [[asked, asked], [asked, False]]


def test_the_share_of_personal_rows_changes_nothing_else(split, mine):
  draw = lambda share: split.local_batches(mine, 50, 8, np.random.default_rng(3), share)  # noqa: E731
  everyone, some, none = draw(1.0), draw(0.3), draw(0.0)
  assert everyone.personal.all() and not none.personal.any()
  assert 0.2 < some.personal.mean() < 0.4
  assert {row.tobytes() for row in some.personal} != {some.personal[0].tobytes()}
  np.testing.assert_array_equal(some.personal, draw(0.3).personal)
  for a, b in zip(everyone._replace(personal=0), some._replace(personal=0), strict=True):
    np.testing.assert_array_equal(a, b)


# Captions' features


def test_the_caption_feature_is_that_of_the_target(contrasted, tiny_checkpoints):
  rows = np.array([i for i, e in enumerate(contrasted.examples) if len(e.references) > 2][:4])
  which = np.array([0, 1, 2, len(contrasted.examples[rows[3]].references) + 1])
  texts = [
    references[k % len(references)]
    for k, references in zip(which, (contrasted.examples[i].references for i in rows), strict=True)
  ]
  batch = contrasted.batch(rows, 4, which)
  expected = directions(tiny_checkpoints, texts)
  np.testing.assert_allclose(batch.caption, expected, rtol=1e-4, atol=1e-5)
  assert len({row.tobytes() for row in batch.caption}) == 4


def test_answers_and_rows_that_fill_up_have_no_caption_feature(contrasted):
  rows = np.arange(len(contrasted))
  batch = contrasted.batch(rows, len(rows) + 3)
  captioned = [not example.question for example in contrasted.examples]
  assert batch.caption.any(axis=1).tolist() == [*captioned, False, False, False]
  assert 0 < sum(captioned) < len(rows)


def test_without_contrast_only_caption_features_are_zero(split, contrasted, mine):
  plain, other = (
    x.local_batches(mine, 3, 4, np.random.default_rng(0)) for x in (split, contrasted)
  )
  assert not plain.caption.any() and other.caption.any(axis=-1).all()
  assert plain.caption.shape == other.caption.shape and plain.caption.dtype == other.caption.dtype
  for a, b in zip(plain._replace(caption=0), other._replace(caption=0), strict=True):
    np.testing.assert_array_equal(a, b)


def test_a_text_that_is_caption_and_answer_has_a_feature_only_as_a_caption(
  source, make_split, monkeypatch
):
  images = source.images()
  examples = [
    Example("a", images[0], ("a red square",)),
    Example("b", images[1], ("a red square",), "what is it ?"),
  ]
  monkeypatch.setattr(type(source), "__getitem__", lambda self, i: examples[i])
  monkeypatch.setattr(type(source), "__len__", lambda self: 2)
  batch = make_split(contrast=True).batch(np.arange(2), 2)
  np.testing.assert_array_equal(batch.targets[0], batch.targets[1])
  assert batch.caption.any(axis=1).tolist() == [True, False]


def test_only_targets_change_with_targets_of_other_examples(contrasted):
  rows = np.arange(len(contrasted))
  others, which = np.random.default_rng(0).permutation(rows), rows % 7
  swapped = contrasted.with_targets_of(others).batch(rows, len(rows), which)
  of_targets = ("targets", "targets_mask", "caption")
  inputs = contrasted.batch(rows, len(rows))._asdict()
  targets = contrasted.batch(others, len(rows), which)._asdict()
  for name, found in swapped._asdict().items():
    np.testing.assert_array_equal(found, (targets if name in of_targets else inputs)[name])
