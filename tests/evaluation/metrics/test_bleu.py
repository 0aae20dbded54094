import math

import numpy as np
import pytest

from afspl_jax.evaluation.metrics.bleu import bleu


def test_corpus_scores_equal_pycocoevalcap(golden_scores, golden_tokens):
  expected = [golden_scores["corpus"][f"BLEU-{n}"] for n in (1, 2, 3, 4)]
  np.testing.assert_allclose(bleu(*golden_tokens).corpus, expected, atol=1e-6, rtol=0)


def test_item_scores_equal_pycocoevalcap(golden_scores, golden_tokens):
  expected = [[item[f"BLEU-{n}"] for n in (1, 2, 3, 4)] for item in golden_scores["items"]]
  np.testing.assert_allclose(bleu(*golden_tokens).items, expected, atol=1e-6, rtol=1e-6)


def test_a_perfect_caption_scores_one():
  tokens = ["a", "dog", "runs", "on", "grass"]
  scores = bleu([tokens], [[["no"], tokens]])
  np.testing.assert_allclose(scores.corpus, 1.0, atol=1e-6)
  np.testing.assert_allclose(scores.items, 1.0, atol=1e-6)


def test_repeated_words_are_clipped_to_their_count_in_one_reference():
  # Papineni et al. 2002, sec. 2.1: the modified unigram precision is 2/7.
  references = [
    ["the", "cat", "is", "on", "the", "mat"],
    ["there", "is", "a", "cat", "on", "the", "mat"],
  ]
  assert bleu([["the"] * 7], [references]).corpus[0] == pytest.approx(2 / 7)


def test_bleu_is_the_geometric_mean_of_precisions():
  # 4 of 5 words, 2 of 4 bigrams, 1 of 3 trigrams match.
  scores = bleu([["a", "dog", "runs", "very", "fast"]], [[["a", "dog", "runs", "so", "fast"]]])
  assert scores.corpus[0] == pytest.approx(4 / 5)
  assert scores.corpus[1] == pytest.approx(math.sqrt(4 / 5 * 2 / 4))
  assert scores.corpus[2] == pytest.approx((4 / 5 * 2 / 4 * 1 / 3) ** (1 / 3))
  assert scores.corpus[3] < 1e-3


def test_short_captions_pay_the_brevity_penalty():
  scores = bleu([["a", "dog"]], [[["a", "dog", "runs"]]])
  assert scores.corpus[0] == pytest.approx(math.exp(1 - 3 / 2))


def test_the_closest_reference_sets_the_length_and_the_shorter_of_two():
  prediction = ["a", "b", "c", "d"]
  near, far = ["a", "b", "c", "x", "y"], ["a", "b", "c", "d", "e", "f", "g", "h"]
  assert bleu([prediction], [[far, near]]).corpus[0] == pytest.approx(math.exp(1 - 5 / 4))
  tie = [far[:5], far[:3]]
  assert bleu([prediction], [tie]).corpus[0] == pytest.approx(1.0)


def test_the_corpus_score_sums_counts_over_items():
  scores = bleu([["a"], ["b", "x", "x"]], [[["a"]], [["b", "c", "d"]]])
  assert scores.corpus[0] == pytest.approx(2 / 4)
  assert scores.items[:, 0] == pytest.approx([1, 1 / 3])


def test_captions_too_short_for_an_ngram_are_smoothed_as_by_the_evaluator():
  # 1e-15 / 1e-9 stands for the precision of no guesses.
  expected = [1e-6 ** ((n - 1) / n) for n in (1, 2, 3, 4)]
  np.testing.assert_allclose(bleu([["dog"]], [[["dog"]]]).items[0], expected, rtol=1e-6)


@pytest.mark.parametrize("reference", [[], ["a", "dog"]])
def test_an_empty_caption_scores_zero(reference):
  assert bleu([[]], [[reference]]).corpus == (0.0, 0.0, 0.0, 0.0)


def test_nothing_to_score_is_an_error():
  with pytest.raises(ValueError, match="at least one prediction"):
    bleu([], [])
