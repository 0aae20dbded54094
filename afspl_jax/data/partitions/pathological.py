"""Every client has images of k labels (after McMahan et al. 2017, sec. 3).

The paper sorts images by label and cuts them into k shards for each client; a shard on the border
of two labels has both. Here shards are cut within a label, so no client has more than k labels.
"""

from collections.abc import Mapping

import numpy as np

from afspl_jax.config.experiment import Data
from afspl_jax.data.partitions import AssignSplit, Examples
from afspl_jax.data.partitions._sharing import (
  assign_by_shares,
  image_labels,
  images_by_main_label,
  numbered_clients,
)
from afspl_jax.errors import UserError

REDRAWN = True


def clients(splits: Mapping[str, Examples], data: Data) -> list[str]:
  """Numbers the clients.

  Raises:
    UserError: train has fewer labels than a client needs, or more than all clients can have.
  """
  found = len(images_by_main_label(image_labels(splits["train"])))
  most = data.num_clients * data.categories
  if not data.categories <= found <= most:
    raise UserError(
      f"data.categories: expected {-(-found // data.num_clients)} to {found} for {data.num_clients}"
      f" clients and the {found} main labels of train; got {data.categories}"
    )
  return numbered_clients(splits, data)


def assign(train: Examples, names: list[str], data: Data, rng: np.random.Generator) -> AssignSplit:
  """Gives each client `data.categories` main labels, each shared equally by its clients."""
  members = images_by_main_label(image_labels(train))
  left = np.full(len(names), data.categories)
  shares = {}
  sizes = {label: len(images) for label, images in members.items()}
  shards = _shards(sizes, len(names), data.categories)
  for label in sorted(shards, key=lambda label: -shards[label]):
    # To the clients that need most labels; so none gets a label twice (Gale 1957, Ryser 1957).
    order = np.lexsort((rng.permutation(len(names)), -left))[: shards[label]]
    left[order] -= 1
    shares[label] = np.zeros(len(names))
    shares[label][order] = 1 / len(order)
  return lambda examples, rng: assign_by_shares(
    images_by_main_label(image_labels(examples)), names, shares, rng
  )


def _shards(sizes: Mapping[str, int], num_clients: int, each: int) -> dict[str, int]:
  """The number of clients for each label, such that shards are as equal as possible.

  Every label has 1 to `num_clients` clients; the sum is `num_clients * each`.
  """
  shards = dict.fromkeys(sizes, 1)
  for _ in range(num_clients * each - len(sizes)):
    open_labels = (label for label in shards if shards[label] < num_clients)
    shards[max(open_labels, key=lambda label: sizes[label] / shards[label])] += 1
  return shards
