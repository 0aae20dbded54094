"""What sites gain or lose by joining, as the last line of a run says it."""

import pytest

from afspl_jax.reporting.gains import Gain, describe_gains, find_gains

SITES = [
  {"client": "a", "personal_cider": 5.0, "alone_cider": 3.0, "personal_exact_match": None},
  {"client": "b", "personal_cider": 6.0, "alone_cider": 6.0, "alone_exact_match": None},
  {"client": "c", "personal_cider": 1.0, "alone_cider": 2.0},
  {"client": "d", "personal_exact_match": 0.5, "alone_exact_match": 0.75, "global_cider": 9.0},
]


def views(**scores) -> dict:
  return {f"test_{name}": of for name, of in scores.items()}


def test_gains_are_those_of_all_examples_and_sites_are_counted_by_their_scores():
  of = views(
    personal={"cider": 5.5, "exact_match": 0.5, "vqa_accuracy": 0.25},
    alone={"cider": 3.0, "exact_match": 0.75},
    pooled={"cider": 6.0},
  )
  assert find_gains(of, SITES) == [
    Gain("cider", 5.5, 3.0, 6.0, better=1, sites=3),
    Gain("exact_match", 0.5, 0.75, None, better=0, sites=1),
  ]


@pytest.mark.parametrize("missing", ["test_personal", "test_alone"])
def test_without_both_models_nothing_is_said(missing):
  of = views(personal={"cider": 5.5}, alone={"cider": 3.0})
  assert find_gains({name: line for name, line in of.items() if name != missing}, SITES) == []
  assert describe_gains([]) == ""


def test_a_gain_and_a_loss_are_said_by_their_signs():
  gains = [
    Gain("cider", 5.456, 3.084, 6.414, 10, 10),
    Gain("exact_match", 0.5, 0.62, None, 3, 9),
    Gain("vqa_accuracy", 0.501, 0.499, 0.0, 4, 9),
  ]
  assert describe_gains(gains) == (
    "By joining, sites gain 2.38 CIDEr on average (alone 3.08, personalised 5.46; 10 of 10 sites"
    " gain; all data in one place 6.41) and lose 0.12 exact match on average (alone 0.62,"
    " personalised 0.50; 3 of 9 sites gain) and neither gain nor lose VQA accuracy on average"
    " (alone 0.50, personalised 0.50; 4 of 9 sites gain; all data in one place 0.00)"
  )
