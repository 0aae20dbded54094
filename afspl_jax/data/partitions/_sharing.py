"""Code that several partitioners share: names, labels, assignment by shares."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from afspl_jax.config.experiment import Data
from afspl_jax.data.partitions import Examples

Shares = Mapping[str, Float[np.ndarray, " clients"]]  # label -> share of each client


def numbered_clients(splits: Mapping[str, Examples], data: Data) -> list[str]:
  """Names for clients that are not sites of the source."""
  return [f"client{i:04d}" for i in range(data.num_clients)]


def image_labels(examples: Examples) -> dict[str, tuple[str, ...]]:
  """Labels of each image, the main one first; ("",) for an image without labels."""
  found: dict[str, dict[str, None]] = {}
  for example in examples:
    found.setdefault(example.image, {}).update(dict.fromkeys(example.labels))
  return {image: tuple(labels) or ("",) for image, labels in found.items()}


def images_by_main_label(labels: Mapping[str, tuple[str, ...]]) -> dict[str, list[str]]:
  """Images by their main label, sorted by label."""
  members: dict[str, list[str]] = {}
  for image, (main, *_) in labels.items():
    members.setdefault(main, []).append(image)
  return dict(sorted(members.items()))


def assign_evenly(
  images: Sequence[str], names: Sequence[str], rng: np.random.Generator
) -> dict[str, str]:
  """Assigns distinct images at random; the clients' numbers of images differ by at most one."""
  distinct = list(dict.fromkeys(images))
  order = rng.permutation(len(distinct))
  return {distinct[j]: names[i % len(names)] for i, j in enumerate(order)}


def share_boundaries(
  shares: Float[np.ndarray, " clients"], count: int, rng: np.random.Generator
) -> Int[np.ndarray, " clients_but_one"]:
  """Boundaries that split `count` images among the clients by their shares.

  Rounding starts at a random offset: on average each client gets exactly its share, even of a label
  with few images, and its part is never more than one image away from it.
  """
  return (np.cumsum(shares)[:-1] * count + rng.random()).astype(int)


def assign_by_shares(
  members: Mapping[str, Sequence[str]],
  names: Sequence[str],
  shares: Shares,
  rng: np.random.Generator,
) -> dict[str, str]:
  """Assigns the images of each label at random by the label's shares; equal shares by default."""
  client_of: dict[str, str] = {}
  even = np.full(len(names), 1 / len(names))
  for label, images in members.items():
    cuts = share_boundaries(shares.get(label, even), len(images), rng)
    groups = np.split(rng.permutation(images), cuts)
    for name, group in zip(names, groups, strict=True):
      client_of.update((str(image), name) for image in group)
  return client_of
