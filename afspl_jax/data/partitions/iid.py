"""Images are dealt out at random, to each client as many."""

import numpy as np

from afspl_jax.config.experiment import Data
from afspl_jax.data.partitions import Deal, Examples
from afspl_jax.data.partitions._deals import evenly, numbered

REDRAWN = False
clients = numbered


def draw(train: Examples, names: list[str], data: Data, rng: np.random.Generator) -> Deal:
  """Each split is dealt out for itself."""
  return lambda examples, rng: evenly([example.image for example in examples], names, rng)
