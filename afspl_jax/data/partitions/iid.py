"""Images are assigned at random, equally many to each client."""

import numpy as np

from afspl_jax.config.experiment import Data
from afspl_jax.data.partitions import AssignSplit, Examples
from afspl_jax.data.partitions._sharing import assign_evenly, numbered_clients

REDRAWN = False
clients = numbered_clients


def assign(train: Examples, names: list[str], data: Data, rng: np.random.Generator) -> AssignSplit:
  """Assigns each split independently."""
  return lambda examples, rng: assign_evenly([example.image for example in examples], names, rng)
