"""BLEU-1 to 4 as COCO's evaluator computes them (Papineni et al. 2002; pycocoevalcap Bleu)."""

import dataclasses
import functools
import math
import operator
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from afspl_jax.metrics.ngrams import MAX_N, count_ngrams

# The evaluator smooths every ratio with these two, so that a caption without any 4-gram scores
# almost 0 where the formula has 0/0. Items' scores depend on them visibly: 7.4e-9 instead of 0.
_TINY = 1e-15
_SMALL = 1e-9


@dataclasses.dataclass(frozen=True)
class BleuScores:
  """BLEU of a set of captions; index k holds BLEU-(k + 1)."""

  corpus: tuple[float, float, float, float]  # from the summed counts, not a mean over items
  items: Float64[np.ndarray, "items 4"]


@dataclasses.dataclass(frozen=True)
class _Counts:
  """What BLEU needs to know of one caption, or of a whole corpus; the two add up."""

  length: int  # tokens of the prediction
  reference_length: int  # tokens of the reference closest in length
  matches: tuple[int, ...]  # n-grams also found in a reference, at most as often as there
  guesses: tuple[int, ...]  # n-grams of the prediction

  def __add__(self, other: "_Counts") -> "_Counts":
    return _Counts(
      self.length + other.length,
      self.reference_length + other.reference_length,
      tuple(map(operator.add, self.matches, other.matches)),
      tuple(map(operator.add, self.guesses, other.guesses)),
    )


def _count(prediction: Sequence[str], references: Sequence[Sequence[str]]) -> _Counts:
  """Matches one prediction with its references (Papineni et al. 2002, sec. 2.1)."""
  # A union of counters keeps each n-gram's largest count over the references.
  allowed: list[Counter] = [Counter() for _ in range(MAX_N)]
  for reference in references:
    for counts, most in zip(count_ngrams(reference), allowed, strict=True):
      most |= counts
  length = len(prediction)
  return _Counts(
    length=length,
    # Of two references equally close in length the shorter counts.
    reference_length=min((abs(len(r) - length), len(r)) for r in references)[1],
    matches=tuple(
      sum(min(count, most[ngram]) for ngram, count in counts.items())
      for counts, most in zip(count_ngrams(prediction), allowed, strict=True)
    ),
    guesses=tuple(max(0, length - n) for n in range(MAX_N)),
  )


def _score(counts: _Counts) -> tuple[float, float, float, float]:
  """BLEU-1..4: geometric means of the precisions, times the brevity penalty (sec. 2.3)."""
  ratio = (counts.length + _TINY) / (counts.reference_length + _SMALL)
  brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
  product = 1.0
  scores = []
  for n, (matches, guesses) in enumerate(zip(counts.matches, counts.guesses, strict=True), start=1):
    product *= (matches + _TINY) / (guesses + _SMALL)
    scores.append(brevity * product ** (1 / n))
  return scores[0], scores[1], scores[2], scores[3]


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
  counts = [_count(p, r) for p, r in zip(predictions, references, strict=True)]
  return BleuScores(
    corpus=_score(functools.reduce(operator.add, counts)),
    items=np.array([_score(count) for count in counts]),
  )
