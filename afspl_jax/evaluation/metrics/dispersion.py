"""How evenly a federation serves its clients: what their mean does not say."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Dispersion:
  """Of one score over clients, each counted once whatever its size."""

  clients: int
  mean: float
  sd: float  # over these clients, not an estimate for others (divided by their number)
  worst: float  # mean of the lowest tenth of clients, at least one (Li et al. 2020, q-FFL, sec. 4)
  gini: float  # 0: all alike; towards 1: few clients have it all


def disperse(scores: Sequence[float]) -> Dispersion:
  """Describes the scores of clients, none of them negative.

  Raises:
    ValueError: If there are none, or one is negative or not a number.
  """
  values = np.sort(np.asarray(scores, np.float64))
  if not len(values) or not values[0] >= 0 or not np.isfinite(values).all():
    raise ValueError(f"Expected the scores of clients, 0 or more; got {list(scores)[:9]}.")
  number = len(values)
  # Mean difference of two clients over twice the mean, from the sorted values in one sum.
  ranks = 2 * np.arange(1, number + 1) - number - 1
  total = values.sum()
  return Dispersion(
    clients=number,
    mean=float(values.mean()),
    sd=float(values.std()),
    worst=float(values[: -(-number // 10)].mean()),
    gini=float(ranks @ values / (number * total)) if total else 0.0,
  )
