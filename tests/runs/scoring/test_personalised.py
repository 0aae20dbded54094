"""Scores of each site, from predictions made for the test."""

import pytest

from afspl_jax.evaluation.predictions import Prediction
from afspl_jax.runs.scoring.personalised import site_scores


def test_a_site_has_a_score_for_each_kind_of_question():
  def prediction(question, *references):
    return Prediction("x", "cat", references, question, {}, {})

  examples = [prediction("q", "cat"), prediction("q", "cat", "dog"), prediction("q", "dog")]
  texts = {"global": ["The cat", "cat", "cat"], "personal": ["dog", "cats", "dog"]}
  assert site_scores(["x", "x", "y"], examples, texts) == [
    {
      "client": "x",
      "examples": 2,
      "global_exact_match": 1.0,
      "global_vqa_accuracy": pytest.approx(1 / 6),
      "personal_exact_match": 0.0,
      "personal_vqa_accuracy": 0.0,
    },
    {
      "client": "y",
      "examples": 1,
      "global_exact_match": 0.0,
      "global_vqa_accuracy": None,
      "personal_exact_match": 1.0,
      "personal_vqa_accuracy": None,
    },
  ]
