"""Clients differ in how much they have: shares of the images from Dirichlet(alpha), dealt IID."""

import numpy as np

from afspl_jax.config.experiment import Data
from afspl_jax.data.partitions import Deal, Examples
from afspl_jax.data.partitions._deals import by_share, labels_of, numbered

REDRAWN = True
clients = numbered


def draw(train: Examples, names: list[str], data: Data, rng: np.random.Generator) -> Deal:
  """Shares of all splits alike (Li et al. 2022, "Federated learning on non-IID data silos")."""
  shares = {"": rng.dirichlet(np.full(len(names), data.dirichlet_alpha))}
  return lambda examples, rng: by_share({"": list(labels_of(examples))}, names, shares, rng)
