import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afspl_jax.evaluation.metrics.vqa import exact_match, normalise, score_answers, vqa_accuracy

GOLDEN = Path(__file__).parents[4] / "shared" / "data" / "golden_vqa" / "vqa_official_400.json"


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
    ("." * 40 + "a cat", "." * 8 + "a cat"),
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
  assert vqa_accuracy(["cat"], [answers]).mean == pytest.approx(score)


WORDS = st.sampled_from(["cat", "dog", "2"])


@settings(max_examples=60, deadline=None, database=None)
@given(prediction=WORDS, answers=st.lists(WORDS, min_size=10, max_size=10))
def test_the_soft_score_is_the_mean_over_all_choices_of_nine_humans(prediction, answers):
  scores = [min(1, nine.count(prediction) / 3) for nine in itertools.combinations(answers, 9)]
  assert len(scores) == 10
  assert vqa_accuracy([prediction], [answers]).mean == pytest.approx(sum(scores) / 10)


def test_both_sides_are_normalised_where_human_answers_differ():
  assert vqa_accuracy(["The cat."], [["a CAT"] * 9 + ["dog"]]).mean == 1
  assert vqa_accuracy(["The cat."], [["a CAT"] * 10]).mean == 0
  assert vqa_accuracy(["a CAT"], [[" a CAT", "a\tCAT\n"] * 5]).mean == 1


def test_accuracies_are_those_of_the_official_evaluation():
  # 0 to 1, of predictions with three and with ten human answers, by the official script.
  if not GOLDEN.is_file():
    pytest.skip(f"golden answers not found: put them into {GOLDEN.parent} to run this test")
  golden = [item for item in json.loads(GOLDEN.read_text()) if len(item["answers"]) > 1]
  assert len(golden) == 366
  scores = vqa_accuracy([g["prediction"] for g in golden], [g["answers"] for g in golden])
  assert scores.items == pytest.approx([g["official"] for g in golden], abs=1e-6)


def test_a_single_answer_is_right_or_wrong():
  scores = exact_match(["two", "left"], ["2", "right"])
  assert list(scores.items) == [1, 0]
  assert scores.mean == 0.5
  with pytest.raises(ValueError, match=r"answers\[1\]: expected a list of at least two answers"):
    vqa_accuracy(["a", "a"], [["a", "a"], ["a"]])


def test_each_answer_is_scored_by_the_metric_for_its_question():
  found = score_answers(["two", "cat", "left"], [["2"], ["cat"] * 2 + ["dog"] * 8, ["right"]])
  assert {name: (rows, list(scores.items)) for name, (rows, scores) in found.items()} == {
    "vqa_accuracy": ([1], [pytest.approx(0.6)]),
    "exact_match": ([0, 2], [1, 0]),
  }
  assert score_answers([], []) == {}


def test_exact_match_is_the_share_of_right_answers():
  predictions = ["The Left lung.", "left", "two", "3.5", "x-ray"]
  assert exact_match(predictions, ["left lung", "left lung", "2", "3.5", "X ray"]).mean == 0.8
  with pytest.raises(ValueError, match="at least one prediction"):
    exact_match([], [])
  with pytest.raises(ValueError, match="1 predictions and 2 lists"):
    exact_match(["a"], ["a", "b"])


def test_nothing_to_score_is_an_error():
  with pytest.raises(ValueError, match="at least one prediction"):
    vqa_accuracy([], [])


def test_a_length_mismatch_is_an_error():
  with pytest.raises(ValueError, match="1 predictions and 2 lists"):
    vqa_accuracy(["a"], [["a", "b"], ["b", "b"]])


@pytest.mark.parametrize("answers", [[], "yes"])
def test_an_item_without_a_list_of_answers_is_named(answers):
  with pytest.raises(ValueError, match=r"answers\[1\]"):
    vqa_accuracy(["a", "b"], [["a", "a"], answers])
