import math

import numpy as np
import pytest

from afspl_jax.evaluation.metrics.cider import cider

OTHER = ["two", "cats", "sleep", "here"]  # a second item, so that words can be rare


def test_corpus_score_equals_pycocoevalcap(golden_scores, golden_tokens):
  assert cider(*golden_tokens).corpus == pytest.approx(golden_scores["corpus"]["CIDEr"], abs=1e-6)


def test_item_scores_equal_pycocoevalcap(golden_scores, golden_tokens):
  expected = [item["CIDEr"] for item in golden_scores["items"]]
  np.testing.assert_allclose(cider(*golden_tokens).items, expected, atol=1e-6, rtol=0)


def test_a_perfect_caption_scores_ten():
  tokens = ["a", "dog", "runs", "fast"]
  scores = cider([tokens, OTHER], [[tokens], [OTHER]])
  assert scores.items == pytest.approx([10, 10])
  assert scores.corpus == pytest.approx(10)


def test_the_score_averages_cosines_over_n_with_a_length_penalty():
  # All words are equally rare, so each cosine is a ratio of counts: 4 shared of 5 and 4 words, etc.
  scores = cider([["a", "b", "c", "d", "e"], OTHER], [[["a", "b", "c", "d"]], [OTHER]])
  cosines = [n / math.sqrt(n * (n + 1)) for n in (4, 3, 2, 1)]
  assert scores.items[0] == pytest.approx(10 * sum(cosines) / 4 * math.exp(-1 / 72))


def test_repeated_words_are_clipped():
  # Unclipped, "a a a a" would match "a" perfectly; clipped, it is 1 * 1 of norms 4 and 1.
  scores = cider([["a", "a", "a", "a"], OTHER], [[["a"]], [OTHER]])
  penalty = math.exp(-(3**2) / 72)
  assert scores.items[0] == pytest.approx(10 * (1 / 4) / 4 * penalty)


def test_references_are_averaged():
  good, bad = ["a", "dog", "runs", "fast"], ["my", "red", "car", "stops"]
  assert cider([good, OTHER], [[good, bad], [OTHER]]).items[0] == pytest.approx(5)


def test_words_of_every_item_weigh_nothing():
  scores = cider([["a"], ["a"]], [[["a"], ["a", "dog"]], [["a"]]])
  assert scores.items == pytest.approx([0, 0])


def test_rare_words_weigh_more():
  # "dog" is in one item's references, "a" in two of three; both captions match half a reference.
  references = [[["a", "cat"]], [["dog", "ran"]], [["a"]]]
  scores = cider([["a"], ["dog"], ["x"]], references).items
  assert 0 < scores[0] < scores[1]


def test_a_single_item_scores_zero():
  assert cider([OTHER], [[OTHER]]).corpus == 0


@pytest.mark.parametrize("tokens", [[], ["unseen"]])
def test_captions_that_share_nothing_score_zero(tokens):
  assert cider([tokens, OTHER], [[["a", "dog"]], [OTHER]]).items[0] == 0


def test_nothing_to_score_is_an_error():
  with pytest.raises(ValueError, match="at least one prediction"):
    cider([], [])
