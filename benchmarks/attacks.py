"""How well an adversary tells who was in the training data: scores to rates, and their bounds."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats


class Success(NamedTuple):
  """Of an attack that gives each example a number, the higher the likelier it was trained on."""

  auc: float  # 0.5 is guessing
  tpr: float  # members found while few others (1 %) are taken for members
  accuracy: float  # balanced, of the half with the higher numbers taken for members


def success(members: Float[np.ndarray, " m"], others: Float[np.ndarray, " n"]) -> Success:
  """How well the numbers of members stand above those of others.

  AUC and the rate at a low false positive rate as in Carlini et al. 2022, "Membership Inference
  Attacks From First Principles"; ties count half.
  """
  both = np.concatenate([members, others])
  ranks = stats.rankdata(both)[: len(members)]
  auc = (ranks.sum() - len(members) * (len(members) + 1) / 2) / (len(members) * len(others))
  bar = np.quantile(others, 0.99, method="higher")
  # As many are above the middle as the adversary knows to be members, if it weighs both alike.
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
  """What a mechanism's epsilon is at least, from guesses whether a record was in its input.

  An (epsilon, delta) mechanism has TPR <= e^epsilon FPR + delta, and the same of TNR and FNR
  (Kairouz et al. 2015, theorem 2.1; Jagielski et al. 2020, "Auditing Differentially Private
  Machine Learning", with the bounds of Clopper and Pearson).

  Args:
    with_it: the guess was "in", of trials in which it was.
    without: the guess was "in", of trials in which it was not.
    delta: the mechanism's.
    confidence: with which the true epsilon is not below what is returned.
  """
  alpha = (1 - confidence) / 2  # shared by two rates
  bounds = []
  for hits, of, misses, others in (
    (with_it.sum(), len(with_it), without.sum(), len(without)),
    ((~without).sum(), len(without), (~with_it).sum(), len(with_it)),
  ):
    low = stats.beta.ppf(alpha, hits, of - hits + 1) if hits else 0.0
    high = stats.beta.ppf(1 - alpha, misses + 1, others - misses) if misses < others else 1.0
    bounds.append(math.log((low - delta) / high) if low > delta else 0.0)
  return max(0.0, *bounds)
