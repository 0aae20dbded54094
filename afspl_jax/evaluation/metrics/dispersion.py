"""Dispersion of a score over clients: how evenly a federation serves them."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Dispersion:
  """Dispersion of one score over clients; each client counts once, whatever its size."""

  clients: int
  mean: float
  sd: float  # population standard deviation of these clients
  worst: float  # mean of the lowest tenth of clients, at least one (Li et al. 2020, q-FFL, sec. 4)
  gini: float  # 0: all clients are equal; towards 1: a few clients have almost everything


def measure_dispersion(scores: Sequence[float]) -> Dispersion:
  """Measures the dispersion of clients' scores, which must not be negative.

  Raises:
    ValueError: there is no score, or one is negative or not a number.
  """
  values = np.sort(np.asarray(scores, np.float64))
  if not len(values) or not values[0] >= 0 or not np.isfinite(values).all():
    raise ValueError(f"Expected the scores of clients, 0 or more; got {list(scores)[:9]}.")
  number = len(values)
  # Mean difference of two clients divided by twice the mean, as one sum over sorted values.
  ranks = 2 * np.arange(1, number + 1) - number - 1
  total = values.sum()
  return Dispersion(
    clients=number,
    mean=float(values.mean()),
    sd=float(values.std()),
    worst=float(values[: -(-number // 10)].mean()),
    gini=float(ranks @ values / (number * total)) if total else 0.0,
  )
