import dataclasses

import numpy as np
import pytest

from afspl_jax.evaluation.metrics.bleu import bleu
from afspl_jax.evaluation.metrics.captions import score_captions
from afspl_jax.evaluation.metrics.cider import cider
from afspl_jax.evaluation.metrics.ptb import tokenize
from afspl_jax.evaluation.metrics.rouge import rouge_l

PREDICTIONS = ["A dog's ball.", "Two cats sleep on a mat"]
REFERENCES = [["The dog's red ball", "A ball."], ["two cats, asleep on a mat"]]


def test_text_scores_equal_pycocoevalcap_on_the_golden_captions(golden_scores):
  items = golden_scores["items"]
  scores = score_captions(
    [item["candidate"] for item in items], [item["references"] for item in items]
  )
  corpus = scores.corpus()
  for n in (1, 2, 3, 4):
    assert corpus[f"bleu{n}"] == pytest.approx(golden_scores["corpus"][f"BLEU-{n}"], abs=1e-6)
    expected = [item[f"BLEU-{n}"] for item in items]
    np.testing.assert_allclose(scores.bleu_items[:, n - 1], expected, atol=1e-6, rtol=0)
  assert corpus["cider"] == pytest.approx(golden_scores["corpus"]["CIDEr"], abs=1e-6)
  expected = [item["CIDEr"] for item in items]
  np.testing.assert_allclose(scores.cider_items, expected, atol=1e-6, rtol=0)


def test_scores_do_not_depend_on_what_was_scored_before():
  before = score_captions(PREDICTIONS, REFERENCES)
  score_captions(PREDICTIONS[::-1], [["two cats", *REFERENCES[0]], REFERENCES[0]])
  after = score_captions(PREDICTIONS, REFERENCES)
  assert after.corpus() == before.corpus() and after.cider > 0
  np.testing.assert_array_equal(after.bleu_counts, before.bleu_counts)


def test_every_score_comes_from_its_metric_on_the_tokens():
  scores = score_captions(PREDICTIONS, REFERENCES)
  tokens = [tokenize(text) for text in PREDICTIONS]
  references = [[tokenize(text) for text in group] for group in REFERENCES]
  bleu_scores = bleu(tokens, references)
  assert (scores.bleu1, scores.bleu2, scores.bleu3, scores.bleu4) == bleu_scores.corpus
  assert scores.cider == cider(tokens, references).corpus > 0
  assert scores.rouge_l == rouge_l(tokens, references).corpus > 0
  np.testing.assert_array_equal(scores.bleu_items, bleu_scores.items)
  np.testing.assert_array_equal(scores.cider_items, cider(tokens, references).items)
  np.testing.assert_array_equal(scores.rouge_l_items, rouge_l(tokens, references).items)


def test_corpus_names_every_score_of_the_set():
  scores = score_captions(PREDICTIONS, REFERENCES)
  assert list(scores.corpus()) == ["bleu1", "bleu2", "bleu3", "bleu4", "cider", "rouge_l"]
  assert scores.corpus()["bleu2"] == scores.bleu2


def test_scores_are_frozen():
  with pytest.raises(dataclasses.FrozenInstanceError):
    score_captions(PREDICTIONS, REFERENCES).cider = 1.0


def test_case_and_punctuation_do_not_matter():
  plain = score_captions(["a dog runs", "a cat"], [["a dog runs"], ["a cat"]])
  marked = score_captions(["A dog runs.", '"A cat"'], [["a dog, runs"], ["A cat!"]])
  assert plain.corpus() == marked.corpus()


def test_an_empty_prediction_scores_zero():
  scores = score_captions(["", "a cat"], [["a dog"], ["a cat"]])
  assert scores.bleu_items[0].tolist() == [0, 0, 0, 0]
  assert scores.cider_items[0] == scores.rouge_l_items[0] == 0


def test_nothing_to_score_is_an_error():
  with pytest.raises(ValueError, match="at least one prediction"):
    score_captions([], [])


def test_a_length_mismatch_is_an_error():
  with pytest.raises(ValueError, match="2 predictions and 1 lists"):
    score_captions(["a", "b"], [["a"]])


@pytest.mark.parametrize("group", [[], "a dog"])
def test_an_item_without_a_list_of_references_is_named(group):
  with pytest.raises(ValueError, match=r"references\[1\].*non-empty list"):
    score_captions(["a", "b"], [["a"], group])
