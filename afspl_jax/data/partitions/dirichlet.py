"""Each label's images are assigned by shares drawn from Dirichlet(alpha) (Hsu et al. 2019).

If images have several labels, no assignment meets the shares of all labels. Iterative
stratification (Sechidis et al. 2011, algorithm 1) then approaches them, the rarest label first. In
that paper the targets of all labels are proportional to one vector of client sizes; here every
label has its own.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from afspl_jax.config.experiment import Data
from afspl_jax.data.partitions import AssignSplit, Examples
from afspl_jax.data.partitions._sharing import (
  Shares,
  assign_by_shares,
  image_labels,
  images_by_main_label,
  numbered_clients,
  share_boundaries,
)

REDRAWN = True
clients = numbered_clients


def assign(train: Examples, names: list[str], data: Data, rng: np.random.Generator) -> AssignSplit:
  """Draws each label's shares once for all splits; labels that train lacks have equal shares."""
  found = sorted({label for labels in image_labels(train).values() for label in labels})
  shares = {label: rng.dirichlet(np.full(len(names), data.dirichlet_alpha)) for label in found}

  def assign_split(examples: Examples, rng: np.random.Generator) -> dict[str, str]:
    labels = image_labels(examples)
    if all(len(several) == 1 for several in labels.values()):
      return assign_by_shares(images_by_main_label(labels), names, shares, rng)
    return _stratify(labels, names, shares, rng)

  return assign_split


def _stratify(
  labels: Mapping[str, tuple[str, ...]],
  names: Sequence[str],
  shares: Shares,
  rng: np.random.Generator,
) -> dict[str, str]:
  known = sorted({label for several in labels.values() for label in several})
  column = {label: i for i, label in enumerate(known)}
  counts = np.array([len(several) for several in labels.values()])
  flat = np.array([column[label] for several in labels.values() for label in several])
  image_of = np.repeat(np.arange(len(labels)), counts)  # of each entry of `flat`
  first = np.cumsum(counts) - counts

  # How many more images of each label each client should get; negative if it has too many.
  left = np.empty((len(known), len(names)), int)
  even = np.full(len(names), 1 / len(names))
  total = np.bincount(flat, minlength=len(known))
  for label, count in zip(known, total.tolist(), strict=True):
    cuts = share_boundaries(shares.get(label, even), count, rng)
    left[column[label]] = np.diff(cuts, prepend=0, append=count)

  members = np.split(image_of[np.argsort(flat, kind="stable")], np.cumsum(total)[:-1])
  client_of = np.full(len(labels), -1)
  open_labels = set(range(len(known)))
  while open_labels:
    rarest = min(open_labels, key=lambda i: (left[i].sum(), i))
    open_labels.remove(rarest)
    images = rng.permutation(members[rarest][client_of[members[rarest]] < 0])
    who = _most_wanted(left[rarest], left.sum(axis=0), len(images), rng)
    client_of[images] = who
    spans = [np.arange(first[i], first[i] + counts[i]) for i in images]
    if spans:
      np.subtract.at(left, (flat[np.concatenate(spans)], np.repeat(who, counts[images])), 1)
  return {image: names[j] for image, j in zip(labels, client_of, strict=True)}


def _most_wanted(
  left: Int[np.ndarray, " clients"],
  in_all: Int[np.ndarray, " clients"],
  count: int,
  rng: np.random.Generator,
) -> Int[np.ndarray, " count"]:
  """The clients of `count` images: each goes to the client that still needs most of this label.

  Ties go to the client that needs most images in all, then to a random one.
  """
  order = np.lexsort((rng.permutation(len(left)), -in_all))
  # Client j takes a turn at each level left[j], left[j] - 1, ...; the `count` highest levels win.
  wanted = np.maximum(left, 0)
  clients, level = np.repeat(order, wanted[order]), []
  for j in order:
    level.append(np.arange(left[j], left[j] - wanted[j], -1))
  turns = np.argsort(-np.concatenate(level), kind="stable") if level else np.zeros(0, int)
  return clients[turns[:count]]
