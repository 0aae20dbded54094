"""Routing by site: keys and query with which an image finds the prompt of its site.

Linear discriminant analysis between sites (Fisher 1936; Hastie et al., The Elements of Statistical
Learning, sec. 4.3.3) from their image statistics alone. With the pooled within-site covariance S
and the weighted mean c of the site means m_k, the query is a projection of S^-1/2 (x - c) onto
directions in which site means differ, and the keys are the projections of the m_k. There a site is
a Gaussian of unit variance around its key.

Means of few images differ by chance, too. Of N images in all, the singular values of the whitened
means of k equal sites in f dimensions stay below (sqrt(k) + sqrt(f)) / sqrt(N) (Marchenko and
Pastur 1967). Directions below it are left out, and the others are shrunk (Gavish and Donoho 2017,
eq. 7). Where no direction is left, as after an iid split, all keys are zero: no image tells the
sites apart.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from afspl_jax.federation.protocol.image_statistics import ImageStatistics
from afspl_jax.models.prompter.site_prompts import SITES
from afspl_jax.types import Params

_RIDGE = 1e-9  # added to the variance in every direction; features are of unit length
_FAR = 1e4  # the place of a key that no image is near to, in deviations within a site
_STREAM = 0x517E  # separates these random numbers from others with the same seed
_STARTS, _PASSES = 10, 100  # of k-means


class Routing(NamedTuple):
  """Values for the prompts of sites, before they are filled up; r directions are used."""

  kernel: Float64[np.ndarray, "f r"]
  bias: Float64[np.ndarray, " r"]
  keys: Float64[np.ndarray, "k r"]


def site_routing(statistics: Mapping[str, ImageStatistics], most: int, seed: int) -> Routing:
  """Keys of the sites, and the query that finds them.

  Args:
    statistics: of the images of each site, by its name.
    most: prompts of sites. If there are more sites, the keys are the centres of clusters of them.
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
  kept = _beyond_chance(spread, means.shape, counts.sum())
  spread, axes, kept = spread[:most], axes[:most], kept[:most]
  axes = axes[kept > 0]
  kernel = np.linalg.solve(factor.T, axes.T)
  keys = white @ axes.T * (kept[kept > 0] / spread[kept > 0])
  if len(sites) > most:
    keys = _cluster_centres(keys, share, most, np.random.default_rng((_STREAM, seed)))
  return Routing(kernel, -centre @ kernel, keys)


def with_routing(params: Params, routing: Routing) -> Params:
  """The shared leaves with sites' prompts that images find.

  Args:
    params: untrained shared leaves of a prompter.
    routing: from `site_routing`. Prompts beyond its keys are found by no image.
  """
  sites, (number, used) = params[SITES], routing.keys.shape
  if not used:
    return params
  kernel, bias = np.zeros_like(sites["query"]["kernel"]), np.zeros_like(sites["query"]["bias"])
  keys = np.full_like(sites["keys"], _FAR)
  kernel[:, :used], bias[:used] = routing.kernel, routing.bias
  keys[:number] = 0
  keys[:number, :used] = routing.keys
  # A step of zero would turn -0.0 into 0.0.
  query = {"kernel": kernel + np.float32(0), "bias": bias + np.float32(0)}
  return {**params, SITES: {**sites, "query": query, "keys": keys + np.float32(0)}}


def _beyond_chance(
  spread: Float64[np.ndarray, " r"], shape: tuple[int, ...], images: float
) -> Float64[np.ndarray, " r"]:
  """Singular values of the whitened means without the part of chance; 0 below its edge."""
  few, many = min(shape), max(shape)
  # A site's mean of n images has variance 1 / n; weighted by its share of all, 1 / images.
  y, ratio = spread * np.sqrt(images / many), few / many
  squared = (y**2 - ratio - 1) ** 2 - 4 * ratio
  signal = np.sqrt(np.maximum(squared, 0)) / np.maximum(y, 1)
  return np.where(y > 1 + np.sqrt(ratio), signal, 0) / np.sqrt(images / many)


def _within(
  sites: list[ImageStatistics], share: Float64[np.ndarray, " k"]
) -> Float64[np.ndarray, "f f"]:
  """The pooled covariance within sites, shrunk towards that of a sphere.

  By as much as its few images ask for (Chen et al. 2010, "Shrinkage algorithms for MMSE covariance
  estimation", eq. 23).
  """
  width = len(sites[0].mean)
  images = sum(site.num_examples for site in sites)
  free = max(images - len(sites), 1)
  rows, columns = np.triu_indices(width)
  triangle = sum(
    part * site.covariance.astype(np.float64) for part, site in zip(share, sites, strict=True)
  )
  within = np.zeros((width, width))
  within[rows, columns] = within[columns, rows] = triangle
  within *= images / free
  total, squares = np.trace(within), np.square(within).sum()
  excess = (free + 1 - 2 / width) * (squares - total**2 / width)
  wanted = (1 - 2 / width) * squares + total**2
  shrink = min(1.0, wanted / excess) if excess > 0 else 1.0
  sphere = total / width + _RIDGE
  return (1 - shrink) * within + shrink * sphere * np.eye(width)


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
