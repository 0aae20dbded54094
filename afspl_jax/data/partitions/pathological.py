"""Every client has images of k labels (after McMahan et al. 2017, sec. 3).

There, images sorted by their label are cut into k shards a client, and a shard on the border of two
labels has both. Here, shards are cut within a label: nobody has images of more than k.
"""

from collections.abc import Mapping

import numpy as np

from afspl_jax.config.experiment import Data
from afspl_jax.data.partitions import Deal, Examples
from afspl_jax.data.partitions._deals import by_share, labels_of, members_of, numbered
from afspl_jax.errors import UserError

REDRAWN = True


def clients(splits: Mapping[str, Examples], data: Data) -> list[str]:
  """Numbered ones.

  Raises:
    UserError: train has fewer labels than a client is to have, or more than all are to have.
  """
  found = len(members_of(labels_of(splits["train"])))
  most = data.num_clients * data.categories
  if not data.categories <= found <= most:
    raise UserError(
      f"data.categories: expected {-(-found // data.num_clients)} to {found} for {data.num_clients}"
      f" clients and the {found} main labels of train; got {data.categories}"
    )
  return numbered(splits, data)


def draw(train: Examples, names: list[str], data: Data, rng: np.random.Generator) -> Deal:
  """Gives each client `data.categories` main labels, and of each as much as its others have."""
  members = members_of(labels_of(train))
  left = np.full(len(names), data.categories)
  shares = {}
  sizes = {label: len(images) for label, images in members.items()}
  shards = _shards(sizes, len(names), data.categories)
  for label in sorted(shards, key=lambda label: -shards[label]):
    # To whom most labels are left: so everybody's end up different ones (Gale 1957, Ryser 1957).
    order = np.lexsort((rng.permutation(len(names)), -left))[: shards[label]]
    left[order] -= 1
    shares[label] = np.zeros(len(names))
    shares[label][order] = 1 / len(order)
  return lambda examples, rng: by_share(members_of(labels_of(examples)), names, shares, rng)


def _shards(sizes: Mapping[str, int], num_clients: int, each: int) -> dict[str, int]:
  """How many clients have each label: shards come out as equal as can be.

  Every label has one to `num_clients`, all together `num_clients * each`.
  """
  shards = dict.fromkeys(sizes, 1)
  for _ in range(num_clients * each - len(sizes)):
    open_labels = (label for label in shards if shards[label] < num_clients)
    shards[max(open_labels, key=lambda label: sizes[label] / shards[label])] += 1
  return shards
