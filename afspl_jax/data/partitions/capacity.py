"""Clients differ in what they can afford: images in proportion to a capacity, dealt IID.

What is skewed is the data alone: how long a client trains is `optim.local_steps`, for all the same.
"""

from collections.abc import Sequence

import numpy as np

from afspl_jax.config.experiment import Data
from afspl_jax.data.partitions import Deal, Examples
from afspl_jax.data.partitions._deals import by_share, labels_of, numbered

REDRAWN = False  # the capacities themselves are no matter of chance
clients = numbered


def capacities(names: Sequence[str], data: Data, rng: np.random.Generator) -> dict[str, float]:
  """From 1 to `data.capacity_ratio`, even steps apart on a logarithmic scale, in random order."""
  steps = np.geomspace(1, data.capacity_ratio, len(names)) if len(names) > 1 else np.ones(1)
  return dict(zip(names, rng.permutation(steps).tolist(), strict=True))


def draw(train: Examples, names: list[str], data: Data, rng: np.random.Generator) -> Deal:
  """Capacities hold for all splits."""
  capacity = np.array(list(capacities(names, data, rng).values()))
  shares = {"": capacity / capacity.sum()}
  return lambda examples, rng: by_share({"": list(labels_of(examples))}, names, shares, rng)
