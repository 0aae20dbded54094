"""Statistics of a site's images: what a site sends once, for keys that find its images.

They are the number of its training examples, and mean and covariance of the joint features of
their images. Both are of unit vectors, so the mean is at most 1 long, and its square and the
covariance's trace add up to at most 1.
"""

from typing import NamedTuple

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from jaxtyping import Float, Float32

from afspl_jax.federation.contracts import SiteError
from afspl_jax.federation.protocol import wire

STATISTICS = "query.statistics"  # message type
RECORD, MEAN, COVARIANCE = "statistics", "mean", "covariance"  # record of arrays, and its entries

_FEWEST = 8  # images; the statistics of fewer are nearly the features themselves


class ImageStatistics(NamedTuple):
  """Mean and covariance of the joint features of a site's images, each of unit length."""

  num_examples: int  # here: images
  mean: Float32[np.ndarray, " f"]
  covariance: Float32[np.ndarray, " triangle"]  # upper triangle, row by row


def image_statistics(features: Float[np.ndarray, "images f"]) -> ImageStatistics:
  """Statistics of features of any length; features of zeros stay zeros.

  Raises:
    SiteError: the images are too few to send statistics of them.
  """
  number, width = features.shape
  if number < _FEWEST:
    raise SiteError(f"image statistics: expected at least {_FEWEST} images; got {number}")
  norms = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
  units = features / np.maximum(norms, 1e-12)
  mean = units.mean(axis=0)
  away = units - mean
  triangle = (away.T @ away / number)[np.triu_indices(width)]
  return ImageStatistics(number, mean.astype(np.float32), triangle.astype(np.float32))


def triangle_size(width: int) -> int:
  """The number of values in the upper triangle of a matrix of this width."""
  return width * (width + 1) // 2


def statistics_content(statistics: ImageStatistics) -> RecordDict:
  """A site's reply with its statistics, as Flower's records."""
  arrays = {MEAN: Array(statistics.mean), COVARIANCE: Array(statistics.covariance)}
  number = ConfigRecord({wire.NUM_EXAMPLES: statistics.num_examples})
  return RecordDict({RECORD: ArrayRecord(arrays), wire.CONFIG: number})
