import pytest
from hypothesis import given
from hypothesis import strategies as st

from afspl_jax.evaluation.metrics.rouge import rouge_l

CAPTIONS = st.lists(st.sampled_from("abcde"), min_size=1, max_size=90)


def f_measure(precision: float, recall: float) -> float:
  return (1 + 1.44) * precision * recall / (recall + 1.44 * precision) if precision else 0.0


def longest_common_subsequence(left: list[str], right: list[str]) -> int:
  """The textbook table, against which the bit-parallel one is tested."""
  table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
  for i, a in enumerate(left):
    for j, b in enumerate(right):
      table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
  return table[-1][-1]


def test_words_in_order_count_even_with_gaps():
  scores = rouge_l([["police", "kill", "the", "gunman"]], [[["police", "killed", "the", "gunman"]]])
  assert scores.items[0] == pytest.approx(3 / 4)
  scores = rouge_l([["the", "gunman", "kill", "police"]], [[["police", "kill", "the", "gunman"]]])
  assert scores.items[0] == pytest.approx(2 / 4)


def test_recall_weighs_more_than_precision():
  short, long = ["a", "b"], ["a", "b", "c", "d"]
  assert rouge_l([short], [[long]]).corpus == pytest.approx(f_measure(1, 1 / 2))
  assert rouge_l([long], [[short]]).corpus == pytest.approx(f_measure(1 / 2, 1))
  assert f_measure(1 / 2, 1) > f_measure(1, 1 / 2)


def test_the_best_precision_and_recall_may_come_from_different_references():
  scores = rouge_l([["a", "b", "x"]], [[["x"], ["a", "b", "c", "d"]]])
  assert scores.corpus == pytest.approx(f_measure(2 / 3, 1))


def test_the_corpus_score_is_the_mean_over_items():
  scores = rouge_l([["a"], ["b"]], [[["a"]], [["c"]]])
  assert list(scores.items) == [1, 0]
  assert scores.corpus == 0.5


def test_empty_captions_match_only_empty_references():
  assert list(rouge_l([[], []], [[["a"]], [[]]]).items) == [0, 1]


@given(CAPTIONS, CAPTIONS)
def test_the_score_follows_from_the_longest_common_subsequence(prediction, reference):
  common = longest_common_subsequence(prediction, reference)
  expected = f_measure(common / len(prediction), common / len(reference))
  assert rouge_l([prediction], [[reference]]).corpus == pytest.approx(expected)


def test_nothing_to_score_is_an_error():
  with pytest.raises(ValueError, match="at least one prediction"):
    rouge_l([], [])
