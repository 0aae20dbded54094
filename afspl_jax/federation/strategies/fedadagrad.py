"""FedAdagrad: Adagrad on the server (_fedopt.py has the algorithm and its source)."""

from dataclasses import dataclass

import numpy as np

from afspl_jax.federation.strategies._fedopt import FedOpt, Moment


@dataclass(frozen=True)
class FedAdagrad(FedOpt):
  """v is the sum of all D^2, so that steps only become smaller."""

  beta1: float = 0.0  # no momentum, as in the paper's runs

  def second_moment(self, v: Moment, update: Moment) -> Moment:
    """Reddi et al. 2021, Algorithm 2, FedAdagrad's line."""
    return v + np.square(update)


create = FedAdagrad
