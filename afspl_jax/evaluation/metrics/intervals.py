"""Confidence intervals of scores by the bootstrap over images (Efron & Tibshirani 1993, ch. 13)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Num

RESAMPLES = 1000
_LEVEL = 0.95
_BLOCK = 100  # resamples at a time: 40 MB for 50,000 images


class Interval(NamedTuple):
  """The range that contains the scores of 95 % of the resamples."""

  low: float
  high: float


def mean_per_resample(
  sums: Float64[np.ndarray, "resamples parts"], items: Float64[np.ndarray, " resamples"]
) -> Float64[np.ndarray, "resamples parts"]:
  """The mean over the items of each resample."""
  return sums / items[:, None]


def bootstrap(
  parts: Num[np.ndarray, "items parts"],
  images: Sequence[str],
  score: Callable[[np.ndarray, np.ndarray], np.ndarray] = mean_per_resample,
  seed: int = 0,
) -> list[Interval]:
  """Percentile intervals of scores that are functions of sums over items.

  Images are drawn with replacement, each with all of its items, because several questions about
  one image are not independent. Equal images and seeds give equal resamples, so that scores are
  comparable.

  Args:
    parts: the terms that each item adds to the sums: its score for a mean, its counts for BLEU.
    images: the image of each item.
    score: maps the sums and the numbers of items of all resamples to their scores.
    seed: seeds the resampling.

  Returns:
    An interval for each column of the result of `score`.

  Raises:
    ValueError: there is no item, or the number of images is different.
  """
  if not len(parts) or len(parts) != len(images):
    raise ValueError(
      f"Expected at least one item and one image for each; got {len(parts)} items and"
      f" {len(images)} images."
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
  """How often each of `number` images occurs in each resample of a block."""
  counts = np.empty((_BLOCK, number))
  for row in counts:
    row[:] = np.bincount(rng.integers(number, size=number), minlength=number)
  return counts
