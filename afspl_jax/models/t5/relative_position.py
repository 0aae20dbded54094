"""T5's relative position buckets (Raffel et al. 2020, sec. 2.1)."""

import math

import numpy as np
from jaxtyping import Int


def relative_buckets(
  queries: int, keys: int, *, num_buckets: int, max_distance: int, bidirectional: bool
) -> Int[np.ndarray, "q m"]:
  """Assigns each pair of positions its bucket (transformers `_relative_position_bucket`).

  On the host, in NumPy: the lengths are static, and a compiler that rewrites a division as a
  product would move positions on a bucket's edge into its neighbour.

  Args:
    queries: number of attending positions.
    keys: number of attended positions.
    num_buckets: buckets in all; with `bidirectional`, half of them for keys ahead.
    max_distance: distance from which all positions share one bucket.
    bidirectional: whether a query may look ahead (the encoder's may).

  Returns:
    The bucket of key m seen from query q.
  """
  ahead = np.arange(keys)[None, :] - np.arange(queries)[:, None]
  offset = np.zeros_like(ahead)
  if bidirectional:
    num_buckets //= 2
    offset = np.where(ahead > 0, num_buckets, 0)
    distance = np.abs(ahead)
  else:
    distance = np.maximum(-ahead, 0)
  # The nearer half get a bucket each, the others logarithmically wider ones.
  exact = num_buckets // 2
  # float32 as in the reference, so that edges round to the same side.
  ratio = np.log(np.maximum(distance, exact).astype(np.float32) / np.float32(exact))
  steps = ratio / np.float32(math.log(max_distance / exact)) * np.float32(num_buckets - exact)
  far = np.minimum(exact + steps.astype(np.int64), num_buckets - 1)
  return (offset + np.where(distance < exact, distance, far)).astype(np.int32)
