"""Routing by site: keys and query of the pool, so that an image finds the prompts of its site.

Fisher's linear discriminant analysis between sites, from their image statistics alone. With the
pooled within-site covariance S and the weighted mean c of the site means m_k, the query is a
projection of S^-1/2 (x - c) onto the span of the S^-1/2 (m_k - c), and the keys are the projections
of the m_k. So query and key have the product (x - c)' S^-1 (m_k - c), as long as `prompter.key_dim`
has room for the whole span; else for the directions in which the site means differ most.

The pool compares by cosine. Where all site means are equal, or there is one site, nothing is left
to project on: the query is zero, and every prompt has the same probability. Site means that differ
by chance alone, as after an iid split, give finite keys that say nothing.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from afspl_jax.federation.protocol.image_statistics import ImageStatistics
from afspl_jax.types import Params

_RIDGE = 1e-5  # added to the variance in every direction; features are of unit length
_LEAST = 1e-4  # spread of the means, in deviations within a site, that counts as a direction
_STREAM = 0x517E  # separates these random numbers from others with the same seed
_STARTS, _PASSES = 10, 100  # of k-means


class Routing(NamedTuple):
  """Values for the pool, before they are filled up to its sizes; r directions are used."""

  kernel: Float64[np.ndarray, "f r"]
  bias: Float64[np.ndarray, " r"]
  keys: Float64[np.ndarray, "k r"]


def site_routing(
  statistics: Mapping[str, ImageStatistics], pool: int, key_width: int, seed: int
) -> Routing:
  """Keys of the sites, and the query that finds them.

  Args:
    statistics: of the images of each site, by its name.
    pool: prompts in the pool. If there are more sites, the keys are the centres of clusters of
      site means.
    key_width: most directions.
    seed: of the clusters.
  """
  sites = [statistics[name] for name in sorted(statistics)]
  counts = np.array([site.num_examples for site in sites], np.float64)
  share = counts / counts.sum()
  means = np.stack([site.mean for site in sites]).astype(np.float64)
  centre = share @ means
  factor = np.linalg.cholesky(_within(sites, share))
  white = np.linalg.solve(factor, (means - centre).T).T
  _, spread, axes = np.linalg.svd(np.sqrt(share)[:, None] * white, full_matrices=False)
  most = min(key_width, len(sites) - 1)
  axes = axes[:most][spread[:most] > _LEAST]
  kernel, keys = np.linalg.solve(factor.T, axes.T), white @ axes.T
  if len(sites) > pool:
    keys = _cluster_centres(keys, share, pool, np.random.default_rng((_STREAM, seed)))
  return Routing(kernel, -centre @ kernel, keys)


def with_routing(params: Params, routing: Routing) -> Params:
  """The shared leaves with a pool that routes.

  The query does not read the instruction. Keys beyond those of the routing keep only what no query
  points to.

  Args:
    params: untrained shared leaves of a prompter.
    routing: from `site_routing`.
  """
  pool, (features, used) = params["pool"], routing.kernel.shape
  kernel, bias = np.zeros_like(pool["query"]["kernel"]), np.zeros_like(pool["query"]["bias"])
  kernel[:features, :used], bias[:used] = routing.kernel, routing.bias
  keys, number = np.array(pool["keys"]), len(routing.keys)
  keys[:, :used], keys[:number, used:] = 0, 0
  keys[:number, :used] = routing.keys
  # A step of zero would turn -0.0 into 0.0.
  query = {"kernel": kernel + np.float32(0), "bias": bias + np.float32(0)}
  return {**params, "pool": {**pool, "query": query, "keys": keys + np.float32(0)}}


def _within(
  sites: list[ImageStatistics], share: Float64[np.ndarray, " k"]
) -> Float64[np.ndarray, "f f"]:
  """The pooled covariance within sites."""
  width = len(sites[0].mean)
  rows, columns = np.triu_indices(width)
  triangle = sum(
    part * site.covariance.astype(np.float64) for part, site in zip(share, sites, strict=True)
  )
  within = np.zeros((width, width))
  within[rows, columns] = within[columns, rows] = triangle
  return within + _RIDGE * np.eye(width)


def _cluster_centres(
  points: Float64[np.ndarray, "k r"],
  share: Float64[np.ndarray, " k"],
  number: int,
  rng: np.random.Generator,
) -> Float64[np.ndarray, "number r"]:
  """Weighted k-means (Lloyd 1982) from k-means++ (Arthur and Vassilvitskii 2007); best of some."""
  found = [_k_means(points, share, _spread_out(points, share, number, rng)) for _ in range(_STARTS)]
  return min(found, key=lambda centres: share @ _distances(points, centres).min(axis=1))


def _spread_out(points, share, number, rng):
  chosen = [rng.choice(len(points), p=share)]
  while len(chosen) < number:
    far = share * _distances(points, points[chosen]).min(axis=1)
    chosen.append(rng.choice(len(points), p=far / far.sum() if far.sum() > 0 else share))
  return points[chosen]


def _k_means(points, share, centres):
  for _ in range(_PASSES):
    own = np.arange(len(centres)) == _distances(points, centres).argmin(axis=1)[:, None]
    weights = share[:, None] * own
    total = weights.sum(axis=0)[:, None]
    moved = np.where(total > 0, weights.T @ points / np.where(total > 0, total, 1), centres)
    if np.array_equal(moved, centres):
      break
    centres = moved
  return centres


def _distances(points, centres):
  """Squared distances of all points from all centres."""
  return np.square(points[:, None] - centres).sum(axis=-1)
