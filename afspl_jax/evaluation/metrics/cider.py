"""CIDEr as COCO's evaluator computes it (Vedantam et al. 2015; pycocoevalcap cider_scorer).

The evaluator's `Cider` is the paper's CIDEr-D without stemming: similarities are clipped and a
Gaussian penalises differences in length (sec. 6). Leaderboards call this number CIDEr, and so does
this package.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float64

from afspl_jax.evaluation.metrics.ngrams import MAX_N, Ngram, count_ngrams

_SIGMA = 6.0  # tokens; the width of the length penalty
_SCALE = 10.0


@dataclasses.dataclass(frozen=True)
class CiderScores:
  """CIDEr of a set of captions, between 0 and 10."""

  corpus: float  # the mean over items
  items: Float64[np.ndarray, " items"]


@dataclasses.dataclass(frozen=True)
class _Vectors:
  """A caption as one tf-idf vector for each n-gram length (eq. 1)."""

  weights: list[dict[Ngram, float]]
  norms: list[float]
  length: int  # tokens


def _vectorise(
  counts: list[Counter[Ngram]], log_frequency: Mapping[Ngram, float], log_items: float
) -> _Vectors:
  """Weights of a caption's n-grams: the rarer in the references, the larger (eq. 1)."""
  weights = [
    # An n-gram without a reference has the same weight as one that occurs in a single item.
    {ngram: count * (log_items - log_frequency.get(ngram, 0.0)) for ngram, count in of_n.items()}
    for of_n in counts
  ]
  norms = [math.sqrt(sum(weight * weight for weight in of_n.values())) for of_n in weights]
  return _Vectors(weights, norms, length=counts[0].total())


def _similarity(prediction: _Vectors, reference: _Vectors) -> float:
  """Mean over n of the clipped cosine similarities, times the length penalty (sec. 6)."""
  total = 0.0
  for n in range(MAX_N):
    norms = prediction.norms[n] * reference.norms[n]
    if norms:
      others = reference.weights[n]
      shared = (
        min(weight, others[ngram]) * others[ngram]
        for ngram, weight in prediction.weights[n].items()
        if ngram in others
      )
      total += sum(shared) / norms
  difference = prediction.length - reference.length
  return total / MAX_N * math.exp(-(difference**2) / (2 * _SIGMA**2))


def cider(
  predictions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> CiderScores:
  """Scores tokenized captions against their references.

  Document frequencies come from the given references, one document per item: a score is comparable
  only between predictions for the same items, and a single item always scores 0.

  Args:
    predictions: The tokens of each item's prediction.
    references: For each item, the tokens of its references; at least one.

  Returns:
    Corpus and per-item CIDEr.

  Raises:
    ValueError: If there is no item, or the two differ in length.
  """
  if not predictions:
    raise ValueError("Expected at least one prediction to score; got none.")
  reference_counts = [[count_ngrams(reference) for reference in group] for group in references]
  frequency: Counter[Ngram] = Counter()
  for group in reference_counts:
    frequency.update({ngram for counts in group for of_n in counts for ngram in of_n})
  log_frequency = {ngram: math.log(count) for ngram, count in frequency.items()}
  log_items = math.log(len(predictions))

  scores = []
  for prediction, group in zip(predictions, reference_counts, strict=True):
    vectors = _vectorise(count_ngrams(prediction), log_frequency, log_items)
    similarities = [
      _similarity(vectors, _vectorise(counts, log_frequency, log_items)) for counts in group
    ]
    scores.append(_SCALE * sum(similarities) / len(similarities))
  items = np.array(scores)
  return CiderScores(corpus=float(items.mean()), items=items)
