"""Each label's images go over the clients by shares from Dirichlet(alpha) (Hsu et al. 2019).

Where images have several labels, no deal meets the shares of them all. They then go by iterative
stratification (Sechidis et al. 2011, algorithm 1), the rarest label first, towards each label's
shares. There, all clients' targets for a label are proportional to one vector, of the clients'
sizes; here, every label has a vector of its own.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from afspl_jax.config.experiment import Data
from afspl_jax.data.partitions import Deal, Examples
from afspl_jax.data.partitions._deals import Shares, by_share, ends, labels_of, members_of, numbered

REDRAWN = True
clients = numbered


def draw(train: Examples, names: list[str], data: Data, rng: np.random.Generator) -> Deal:
  """Draws each label's shares once for all splits; labels that train lacks have even ones."""
  found = sorted({label for labels in labels_of(train).values() for label in labels})
  shares = {label: rng.dirichlet(np.full(len(names), data.dirichlet_alpha)) for label in found}

  def deal(examples: Examples, rng: np.random.Generator) -> dict[str, str]:
    labels = labels_of(examples)
    if all(len(several) == 1 for several in labels.values()):
      return by_share(members_of(labels), names, shares, rng)
    return _stratify(labels, names, shares, rng)

  return deal


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

  # Images that each client is still to get of each label; negative where it got too many already.
  left = np.empty((len(known), len(names)), int)
  even = np.full(len(names), 1 / len(names))
  total = np.bincount(flat, minlength=len(known))
  for label, count in zip(known, total.tolist(), strict=True):
    cuts = ends(shares.get(label, even), count, rng)
    left[column[label]] = np.diff(cuts, prepend=0, append=count)

  members = np.split(image_of[np.argsort(flat, kind="stable")], np.cumsum(total)[:-1])
  owner = np.full(len(labels), -1)
  open_labels = set(range(len(known)))
  while open_labels:
    rarest = min(open_labels, key=lambda i: (left[i].sum(), i))
    open_labels.remove(rarest)
    images = rng.permutation(members[rarest][owner[members[rarest]] < 0])
    who = _most_wanted(left[rarest], left.sum(axis=0), len(images), rng)
    owner[images] = who
    spans = [np.arange(first[i], first[i] + counts[i]) for i in images]
    if spans:
      np.subtract.at(left, (flat[np.concatenate(spans)], np.repeat(who, counts[images])), 1)
  return {image: names[j] for image, j in zip(labels, owner, strict=True)}


def _most_wanted(
  left: Int[np.ndarray, " clients"],
  in_all: Int[np.ndarray, " clients"],
  count: int,
  rng: np.random.Generator,
) -> Int[np.ndarray, " count"]:
  """Clients that get `count` images, one after the other to whom most are left of this label.

  Among equals to whom most are left in all, then by chance.
  """
  order = np.lexsort((rng.permutation(len(left)), -in_all))
  # Client j's turns come when its left is left[j], left[j] - 1, ...: the `count` highest of all.
  wanted = np.maximum(left, 0)
  clients, level = np.repeat(order, wanted[order]), []
  for j in order:
    level.append(np.arange(left[j], left[j] - wanted[j], -1))
  turns = np.argsort(-np.concatenate(level), kind="stable") if level else np.zeros(0, int)
  return clients[turns[:count]]
