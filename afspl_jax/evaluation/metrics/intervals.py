"""Intervals of scores by the bootstrap over images (Efron & Tibshirani 1993, ch. 13)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Num

RESAMPLES = 1000
_LEVEL = 0.95
_BLOCK = 100  # resamples at a time: 40 MB for 50,000 images


class Interval(NamedTuple):
  """Where 95 % of the resamples' scores lie."""

  low: float
  high: float


def means(
  sums: Float64[np.ndarray, "resamples parts"], items: Float64[np.ndarray, " resamples"]
) -> Float64[np.ndarray, "resamples parts"]:
  """The score of a resample that is a mean over its items."""
  return sums / items[:, None]


def bootstrap(
  parts: Num[np.ndarray, "items parts"],
  images: Sequence[str],
  score: Callable[[np.ndarray, np.ndarray], np.ndarray] = means,
  seed: int = 0,
) -> list[Interval]:
  """Percentile intervals of scores that follow from sums over items.

  Images are drawn with replacement, each with all of its items: several questions about one image
  are not independent. Equal images and seeds give equal resamples, so that scores compare.

  Args:
    parts: What each item adds to the sums: for a mean its score, for BLEU its counts.
    images: The image of each item.
    score: From the sums, and the number of items, of all resamples to their scores.
    seed: Of the resamples.

  Returns:
    An interval for each column of what `score` returns.

  Raises:
    ValueError: If there is no item, or not one image for each.
  """
  if not len(parts) or len(parts) != len(images):
    raise ValueError(
      f"Expected items and as many images; got {len(parts)} items and {len(images)} images."
    )
  _, cluster = np.unique(np.asarray(images), return_inverse=True)
  number = int(cluster.max()) + 1
  per_image = np.zeros((number, parts.shape[1] + 1))
  np.add.at(per_image, cluster, np.column_stack([parts, np.ones(len(parts))]))
  rng = np.random.default_rng(seed)
  sums = np.concatenate([_drawn(rng, number) @ per_image for _ in range(RESAMPLES // _BLOCK)])
  scores = score(sums[:, :-1], sums[:, -1])
  tail = (1 - _LEVEL) / 2
  return [Interval(*map(float, np.quantile(column, [tail, 1 - tail]))) for column in scores.T]


def _drawn(rng: np.random.Generator, number: int) -> Float64[np.ndarray, "block images"]:
  """How often each of `number` images is in each resample of a block."""
  counts = np.empty((_BLOCK, number))
  for row in counts:
    row[:] = np.bincount(rng.integers(number, size=number), minlength=number)
  return counts
