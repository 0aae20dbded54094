"""FedAdam: Adam on the server (_fedopt.py has the algorithm and its source)."""

from dataclasses import dataclass

import numpy as np

from afspl_jax.federation.strategies._base import require_option
from afspl_jax.federation.strategies._fedopt import FedOpt, Moment


@dataclass(frozen=True)
class FedAdam(FedOpt):
  """v is a moving average of D^2."""

  beta2: float = 0.99  # decay of v a round

  def __post_init__(self):
    super().__post_init__()
    require_option(self, "beta2", 0 <= self.beta2 < 1, "a number from 0 to below 1")

  def second_moment(self, v: Moment, update: Moment) -> Moment:
    """Reddi et al. 2021, Algorithm 2, FedAdam's line."""
    return self.beta2 * v + (1 - self.beta2) * np.square(update)


create = FedAdam
