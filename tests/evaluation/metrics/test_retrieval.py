import numpy as np
import pytest

from afspl_jax.evaluation.metrics import retrieval
from afspl_jax.evaluation.metrics.retrieval import recall_at_k


def naive(images, captions, image_of, k):
  """Both recalls as one would say them."""
  cosine = np.array(
    [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in captions] for a in images]
  )
  found = [image_of[j] in np.argsort(-cosine[:, j])[:k] for j in range(len(captions))]
  own = [i in image_of[np.argsort(-cosine[i])[:k]] for i in range(len(images))]
  return np.mean(found), np.mean(own)


@pytest.mark.parametrize("block", [7, 1024])
def test_recalls_are_those_of_sorted_lists(monkeypatch, block):
  monkeypatch.setattr(retrieval, "_BLOCK", block)
  rng = np.random.default_rng(0)
  images = rng.normal(size=(25, 6))
  image_of = np.concatenate([np.arange(25), rng.integers(25, size=60)])
  captions = images[image_of] + 2.0 * rng.normal(size=(85, 6))
  found = recall_at_k(images, captions, image_of)
  for k in (1, 5, 10):
    wanted = naive(images, captions, image_of, k)
    assert (found[f"text_to_image_r{k}"], found[f"image_to_text_r{k}"]) == pytest.approx(wanted)
  assert 0 < found["text_to_image_r1"] < found["text_to_image_r10"] < 1


def test_features_that_are_all_alike_find_nothing():
  found = recall_at_k(np.ones((20, 4)), np.ones((40, 4)), np.repeat(np.arange(20), 2))
  assert set(found.values()) == {0.0}


def test_the_same_words_for_two_images_do_not_tell_them_apart():
  images = np.eye(3)
  captions = np.array([[1.0, 1.0, 0], [1.0, 1.0, 0], [0, 0, 1.0]])
  found = recall_at_k(images, captions, np.array([0, 1, 2]))
  assert found["text_to_image_r1"] == found["image_to_text_r1"] == pytest.approx(1 / 3)
