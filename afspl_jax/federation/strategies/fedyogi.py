"""FedYogi: Yogi on the server (_fedopt.py has the algorithm and its source)."""

from dataclasses import dataclass

import numpy as np

from afspl_jax.federation.strategies._base import require_option
from afspl_jax.federation.strategies._fedopt import FedOpt, Moment


@dataclass(frozen=True)
class FedYogi(FedOpt):
  """v moves towards D^2 by steps of the size of D^2: unlike Adam's it forgets slowly."""

  beta2: float = 0.99  # 1 - beta2 is the share of D^2 that v moves by a round

  def __post_init__(self):
    super().__post_init__()
    require_option(self, "beta2", 0 <= self.beta2 < 1, "a number from 0 to below 1")

  def second_moment(self, v: Moment, update: Moment) -> Moment:
    """Reddi et al. 2021, Algorithm 2, FedYogi's line."""
    square = np.square(update)
    return v - (1 - self.beta2) * square * np.sign(v - square)


create = FedYogi
