"""Names, labels and rounding that several partitioners share."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from afspl_jax.config.experiment import Data
from afspl_jax.data.partitions import Examples

Shares = Mapping[str, Float[np.ndarray, " clients"]]  # of each label, over the clients


def numbered(splits: Mapping[str, Examples], data: Data) -> list[str]:
  """Names of clients that are no sites."""
  return [f"client{i:04d}" for i in range(data.num_clients)]


def labels_of(examples: Examples) -> dict[str, tuple[str, ...]]:
  """Labels of each image, the main one first; ("",) of an image without."""
  found: dict[str, dict[str, None]] = {}
  for example in examples:
    found.setdefault(example.image, {}).update(dict.fromkeys(example.labels))
  return {image: tuple(labels) or ("",) for image, labels in found.items()}


def members_of(labels: Mapping[str, tuple[str, ...]]) -> dict[str, list[str]]:
  """Images of each main label, by the labels' names."""
  members: dict[str, list[str]] = {}
  for image, (main, *_) in labels.items():
    members.setdefault(main, []).append(image)
  return dict(sorted(members.items()))


def evenly(images: Sequence[str], names: Sequence[str], rng: np.random.Generator) -> dict[str, str]:
  """Deals distinct images out at random, to each client as many but for one."""
  distinct = list(dict.fromkeys(images))
  order = rng.permutation(len(distinct))
  return {distinct[j]: names[i % len(names)] for i, j in enumerate(order)}


def ends(
  shares: Float[np.ndarray, " clients"], count: int, rng: np.random.Generator
) -> Int[np.ndarray, " clients_but_one"]:
  """Where to cut a row of `count` so that each client gets its share.

  Cut from a random start: a small label goes by its shares on average, and no client's part of any
  is more than one away from its share.
  """
  return (np.cumsum(shares)[:-1] * count + rng.random()).astype(int)


def by_share(
  members: Mapping[str, Sequence[str]],
  names: Sequence[str],
  shares: Shares,
  rng: np.random.Generator,
) -> dict[str, str]:
  """Deals the images of each label out at random by its shares; by even ones where it has none."""
  owner: dict[str, str] = {}
  even = np.full(len(names), 1 / len(names))
  for label, images in members.items():
    cuts = ends(shares.get(label, even), len(images), rng)
    groups = np.split(rng.permutation(images), cuts)
    for name, group in zip(names, groups, strict=True):
      owner.update((str(image), name) for image in group)
  return owner
