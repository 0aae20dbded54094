"""Clients differ in capacity: their numbers of images are proportional to it, assigned IID.

Only the data is skewed: all clients train for `optim.local_steps`.
"""

from collections.abc import Sequence

import numpy as np

from afspl_jax.config.experiment import Data
from afspl_jax.data.partitions import AssignSplit, Examples
from afspl_jax.data.partitions._sharing import assign_by_shares, image_labels, numbered_clients

REDRAWN = False  # only the order of the capacities is random
clients = numbered_clients


def capacities(names: Sequence[str], data: Data, rng: np.random.Generator) -> dict[str, float]:
  """From 1 to `data.capacity_ratio`, evenly spaced on a logarithmic scale, in random order."""
  steps = np.geomspace(1, data.capacity_ratio, len(names)) if len(names) > 1 else np.ones(1)
  return dict(zip(names, rng.permutation(steps).tolist(), strict=True))


def assign(train: Examples, names: list[str], data: Data, rng: np.random.Generator) -> AssignSplit:
  """Draws one capacity for each client, for all splits."""
  capacity = np.array(list(capacities(names, data, rng).values()))
  shares = {"": capacity / capacity.sum()}
  return lambda examples, rng: assign_by_shares(
    {"": list(image_labels(examples))}, names, shares, rng
  )
