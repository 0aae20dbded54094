"""All caption metrics of texts and their references."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64

from afspl_jax.evaluation.metrics.bleu import bleu
from afspl_jax.evaluation.metrics.cider import cider
from afspl_jax.evaluation.metrics.ptb import tokenize
from afspl_jax.evaluation.metrics.rouge import rouge_l


@dataclasses.dataclass(frozen=True)
class CaptionScores:
  """Every caption metric, for the whole set and for each item.

  The BLEU of the set comes from its summed n-gram counts; its CIDEr and ROUGE-L are means over
  items. CIDEr lies between 0 and 10, the others between 0 and 1.
  """

  bleu1: float
  bleu2: float
  bleu3: float
  bleu4: float
  cider: float
  rouge_l: float
  bleu_items: Float64[np.ndarray, "items 4"]  # column k is BLEU-(k + 1)
  bleu_counts: Int64[np.ndarray, "items 10"]  # the input of `bleu_from_counts`
  cider_items: Float64[np.ndarray, " items"]
  rouge_l_items: Float64[np.ndarray, " items"]

  def corpus(self) -> dict[str, float]:
    """The scores of the whole set by name."""
    names = ("bleu1", "bleu2", "bleu3", "bleu4", "cider", "rouge_l")
    return {name: getattr(self, name) for name in names}


def score_captions(
  predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> CaptionScores:
  """Scores captions as COCO's evaluator does (Chen et al. 2015, sec. 3).

  Args:
    predictions: one caption for each item; an empty caption scores 0.
    references: the human captions of each item, at least one.

  Returns:
    BLEU-1..4, CIDEr and ROUGE-L, for the set and for each item. CIDEr takes its document
    frequencies from `references`: it compares models on the same items, and it is 0 for a single
    item.

  Raises:
    ValueError: there is nothing to score, the lengths differ, or an item has no reference.
  """
  if not predictions:
    raise ValueError("Expected at least one prediction to score; got none.")
  if len(predictions) != len(references):
    raise ValueError(
      f"Expected one list of references per prediction; got {len(predictions)} predictions and "
      f"{len(references)} lists. Pass them in the same order, one list for each."
    )
  for index, group in enumerate(references):
    if isinstance(group, str) or not group:
      raise ValueError(
        f"references[{index}]: expected a non-empty list of strings; got {group!r}. "
        "Drop the item, or give at least one reference in a list."
      )
  predicted = [tokenize(prediction) for prediction in predictions]
  human = [[tokenize(reference) for reference in group] for group in references]
  bleu_scores = bleu(predicted, human)
  cider_scores = cider(predicted, human)
  rouge_scores = rouge_l(predicted, human)
  bleu1, bleu2, bleu3, bleu4 = bleu_scores.corpus
  return CaptionScores(
    bleu1=bleu1,
    bleu2=bleu2,
    bleu3=bleu3,
    bleu4=bleu4,
    cider=cider_scores.corpus,
    rouge_l=rouge_scores.corpus,
    bleu_items=bleu_scores.items,
    bleu_counts=bleu_scores.counts,
    cider_items=cider_scores.items,
    rouge_l_items=rouge_scores.items,
  )
