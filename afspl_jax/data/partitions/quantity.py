"""Clients differ in the number of images: shares from Dirichlet(alpha), images assigned IID."""

import numpy as np

from afspl_jax.config.experiment import Data
from afspl_jax.data.partitions import AssignSplit, Examples
from afspl_jax.data.partitions._sharing import assign_by_shares, image_labels, numbered_clients

REDRAWN = True
clients = numbered_clients


def assign(train: Examples, names: list[str], data: Data, rng: np.random.Generator) -> AssignSplit:
  """Draws shares for all splits (Li et al. 2022, "Federated learning on non-IID data silos")."""
  shares = {"": rng.dirichlet(np.full(len(names), data.dirichlet_alpha))}
  return lambda examples, rng: assign_by_shares(
    {"": list(image_labels(examples))}, names, shares, rng
  )
