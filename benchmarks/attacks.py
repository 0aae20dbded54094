"""Success rates of membership inference, and the epsilon that they imply at least."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats


class Success(NamedTuple):
  """The success of an attack that scores examples; a higher score means a likelier member."""

  auc: float  # 0.5: no better than guessing
  tpr: float  # true positive rate at a false positive rate of 1 %
  accuracy: float  # balanced, with the higher half of the scores taken as members


def success(members: Float[np.ndarray, " m"], others: Float[np.ndarray, " n"]) -> Success:
  """Measures how far the scores of members are above those of others.

  AUC and the rate at a low false positive rate are those of Carlini et al. 2022, "Membership
  Inference Attacks From First Principles"; ties count half.
  """
  both = np.concatenate([members, others])
  ranks = stats.rankdata(both)[: len(members)]
  auc = (ranks.sum() - len(members) * (len(members) + 1) / 2) / (len(members) * len(others))
  bar = np.quantile(others, 0.99, method="higher")
  # The median of both, weighted equally: half of the weight is above it.
  weight = np.r_[np.full(len(members), 1 / len(members)), np.full(len(others), 1 / len(others))]
  order = np.argsort(both, kind="stable")
  middle = both[order][np.searchsorted(np.cumsum(weight[order]), 1.0 - 1e-9)]
  right = np.mean(members > middle) + np.mean(others <= middle)
  return Success(float(auc), float(np.mean(members > bar)), float(right / 2))


def least_epsilon(
  with_it: Bool[np.ndarray, " n"],
  without: Bool[np.ndarray, " m"],
  delta: float,
  confidence: float = 0.95,
) -> float:
  """Returns a lower bound of a mechanism's epsilon, from guesses whether a record was in its input.

  An (epsilon, delta) mechanism has TPR <= e^epsilon FPR + delta, and the same for TNR and FNR
  (Kairouz et al. 2015, theorem 2.1; Jagielski et al. 2020, "Auditing Differentially Private
  Machine Learning", with the bounds of Clopper and Pearson).

  Args:
    with_it: guesses "in", for trials with the record.
    without: guesses "in", for trials without the record.
    delta: the mechanism's.
    confidence: probability that the true epsilon is not below the result.
  """
  alpha = (1 - confidence) / 2  # two rates share the probability of an error
  bounds = []
  for hits, of, misses, others in (
    (with_it.sum(), len(with_it), without.sum(), len(without)),
    ((~without).sum(), len(without), (~with_it).sum(), len(with_it)),
  ):
    low = stats.beta.ppf(alpha, hits, of - hits + 1) if hits else 0.0
    high = stats.beta.ppf(1 - alpha, misses + 1, others - misses) if misses < others else 1.0
    bounds.append(math.log((low - delta) / high) if low > delta else 0.0)
  return max(0.0, *bounds)
