import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afspl_jax.evaluation.metrics.vqa import exact_match, normalise, vqa_accuracy


# Expected values are those of the official evaluation (GT-Vision-Lab/VQA vqaEval.py).
@pytest.mark.parametrize(
  ("answer", "expected"),
  [
    ("Yes", "yes"),
    ("The two dogs.", "2 dogs"),
    ("none", "0"),
    ("Ten o clock", "10 o clock"),
    ("an apple a day", "apple day"),
    ("dont", "don't"),
    ("couldnt've", "couldn't've"),
    ("oclock", "o'clock"),
    ("its", "its"),
    ("Im", "im"),
    ("x-ray", "x ray"),
    ("x -ray", "x ray"),
    ("left/right", "left right"),
    ("left, right", "left right"),
    ("1,000-2,000", "10002000"),
    ("5.5", "5.5"),
    ("U.S.A.", "usa"),
    ("what?!", "what"),
    (" \n a\tcat ", "cat"),
    ("a", ""),
    ("men's", "men's"),
  ],
)
def test_answers_are_normalised_as_officially(answer, expected):
  assert normalise(answer) == expected


@pytest.mark.parametrize(
  ("matches", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)]
)
def test_ten_answers_give_the_leave_one_out_score(matches, score):
  # With 3 matches of 10: 7 times all 3 remain (score 1), 3 times only 2 do (2/3).
  answers = ["cat"] * matches + [f"other {index}" for index in range(10 - matches)]
  assert vqa_accuracy(["cat"], [answers]).accuracy == pytest.approx(score)


WORDS = st.sampled_from(["cat", "dog", "2"])


@settings(max_examples=60, deadline=None, database=None)
@given(prediction=WORDS, answers=st.lists(WORDS, min_size=10, max_size=10))
def test_the_soft_score_is_the_mean_over_all_choices_of_nine_humans(prediction, answers):
  scores = [min(1, nine.count(prediction) / 3) for nine in itertools.combinations(answers, 9)]
  assert len(scores) == 10
  assert vqa_accuracy([prediction], [answers]).accuracy == pytest.approx(sum(scores) / 10)


def test_both_sides_are_normalised():
  assert vqa_accuracy(["The cat."], [["a CAT"] * 10]).accuracy == 1


def test_a_single_answer_is_right_or_wrong():
  scores = vqa_accuracy(["two", "left"], [["2"], ["right"]])
  assert list(scores.items) == [1, 0]
  assert scores.accuracy == 0.5


def test_exact_match_is_the_share_of_right_answers():
  predictions = ["The Left lung.", "left", "two", "3.5", "x-ray"]
  assert exact_match(predictions, ["left lung", "left lung", "2", "3.5", "X ray"]) == 0.8
  with pytest.raises(ValueError, match="at least one prediction"):
    exact_match([], [])
  with pytest.raises(ValueError, match="1 predictions and 2 lists"):
    exact_match(["a"], ["a", "b"])


def test_nothing_to_score_is_an_error():
  with pytest.raises(ValueError, match="at least one prediction"):
    vqa_accuracy([], [])


def test_a_length_mismatch_is_an_error():
  with pytest.raises(ValueError, match="1 predictions and 2 lists"):
    vqa_accuracy(["a"], [["a"], ["b"]])


@pytest.mark.parametrize("answers", [[], "yes"])
def test_an_item_without_a_list_of_answers_is_named(answers):
  with pytest.raises(ValueError, match=r"answers\[1\]"):
    vqa_accuracy(["a", "b"], [["a"], answers])
