"""T5's relative position buckets (Raffel et al. 2020, sec. 2.1)."""

import math

import numpy as np
from jaxtyping import Int


def relative_buckets(
  queries: int, keys: int, *, num_buckets: int, max_distance: int, bidirectional: bool
) -> Int[np.ndarray, "q m"]:
  """Assigns each pair of positions its bucket (transformers `_relative_position_bucket`).

  Runs on the host in NumPy: the lengths are static, and a compiler that turns a division into a
  product would move positions at the edge of a bucket into the next one.

  Args:
    queries: number of attending positions.
    keys: number of attended positions.
    num_buckets: number of buckets; with `bidirectional`, half of them are for later keys.
    max_distance: distance from which all positions share one bucket.
    bidirectional: whether a query may attend to later keys (in the encoder).

  Returns:
    The bucket of key m seen from query q.
  """
  later = np.arange(keys)[None, :] - np.arange(queries)[:, None]
  offset = np.zeros_like(later)
  if bidirectional:
    num_buckets //= 2
    offset = np.where(later > 0, num_buckets, 0)
    distance = np.abs(later)
  else:
    distance = np.maximum(-later, 0)
  # Near positions have one bucket each; those of far positions get logarithmically wider.
  exact = num_buckets // 2
  # float32 as in the reference, so that edges round to the same side.
  ratio = np.log(np.maximum(distance, exact).astype(np.float32) / np.float32(exact))
  steps = ratio / np.float32(math.log(max_distance / exact)) * np.float32(num_buckets - exact)
  far = np.minimum(exact + steps.astype(np.int64), num_buckets - 1)
  return (offset + np.where(distance < exact, distance, far)).astype(np.int32)
