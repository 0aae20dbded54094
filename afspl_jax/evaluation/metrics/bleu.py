"""BLEU-1 to 4 as COCO's evaluator computes them (Papineni et al. 2002; pycocoevalcap Bleu)."""

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64, Num

from afspl_jax.evaluation.metrics.ngrams import MAX_N, count_ngrams

# The evaluator adds these two to every ratio, so that a caption without a 4-gram scores almost 0
# where the formula is 0/0. The scores of items depend on them visibly: 7.4e-9 instead of 0.
_TINY = 1e-15
_SMALL = 1e-9


@dataclasses.dataclass(frozen=True)
class BleuScores:
  """BLEU of a set of captions; index k holds BLEU-(k + 1)."""

  corpus: tuple[float, float, float, float]  # from the summed counts, not a mean over items
  items: Float64[np.ndarray, "items 4"]
  counts: Int64[np.ndarray, "items 10"]  # of each item, the input of `bleu_from_counts`


def _count(prediction: Sequence[str], references: Sequence[Sequence[str]]) -> list[int]:
  """Counts the matches of one prediction with its references (Papineni et al. 2002, sec. 2.1)."""
  # A union of counters keeps each n-gram's largest count over the references.
  allowed: list[Counter] = [Counter() for _ in range(MAX_N)]
  for reference in references:
    for counts, most in zip(count_ngrams(reference), allowed, strict=True):
      most |= counts
  length = len(prediction)
  # If two references are equally close in length, the shorter one counts.
  reference_length = min((abs(len(r) - length), len(r)) for r in references)[1]
  matches = [
    sum(min(count, most[ngram]) for ngram, count in counts.items())
    for counts, most in zip(count_ngrams(prediction), allowed, strict=True)
  ]
  return [length, reference_length, *matches, *(max(0, length - n) for n in range(MAX_N))]


def bleu_from_counts(counts: Num[np.ndarray, "*sets 10"]) -> Float64[np.ndarray, "*sets 4"]:
  """BLEU-1..4: geometric means of the precisions, times the brevity penalty (sec. 2.3).

  Args:
    counts: counts of one caption, or sums over captions: tokens of the prediction; tokens of the
      reference that is closest in length; for n = 1..4, the clipped number of n-grams that a
      reference also has; and n-grams of the prediction.
  """
  length, reference_length = counts[..., 0], counts[..., 1]
  matches, guesses = np.split(counts[..., 2:], 2, axis=-1)
  ratio = (length + _TINY) / (reference_length + _SMALL)
  brevity = np.exp(1 - 1 / np.minimum(ratio, 1.0))
  products = np.cumprod((matches + _TINY) / (guesses + _SMALL), axis=-1)
  return brevity[..., None] * products ** (1 / np.arange(1, MAX_N + 1))


def bleu(
  predictions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> BleuScores:
  """Scores tokenized captions against their references.

  Args:
    predictions: The tokens of each item's prediction.
    references: For each item, the tokens of its references; at least one.

  Returns:
    Corpus and per-item BLEU-1..4, each between 0 and 1.

  Raises:
    ValueError: If there is no item, or the two differ in length.
  """
  if not predictions:
    raise ValueError("Expected at least one prediction to score; got none.")
  pairs = zip(predictions, references, strict=True)
  counts = np.array([_count(prediction, group) for prediction, group in pairs], np.int64)
  bleu1, bleu2, bleu3, bleu4 = bleu_from_counts(counts.sum(axis=0)).tolist()
  return BleuScores((bleu1, bleu2, bleu3, bleu4), bleu_from_counts(counts), counts)
