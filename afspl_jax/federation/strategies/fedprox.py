"""FedProx: FedAvg whose sites are held near the global params while they train.

Li et al. 2020, "Federated Optimization in Heterogeneous Networks", Algorithm 2. There sites are
drawn with probabilities by size and averaged plainly; here `fed.selection` draws them, and the
average is FedAvg's, weighted by size.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from afspl_jax.federation.strategies._base import require_option
from afspl_jax.federation.strategies.fedavg import FedAvg
from afspl_jax.types import Params


@dataclass(frozen=True)
class FedProx(FedAvg):
  """Adds mu / 2 * ||w - w_global||^2 to the local loss (eq. 2 of the paper)."""

  mu: float = 0.01  # weight of the proximal term; 0 = FedAvg. The paper tries 0.001 to 1

  def __post_init__(self):
    require_option(self, "mu", 0 <= self.mu < math.inf, "a finite number from 0 on")

  def client_penalty(self, params: Params, global_params: Params) -> Float[Array, ""]:
    """The proximal term."""
    square = lambda a, b: jnp.sum(jnp.square(jnp.float32(a) - jnp.float32(b)))  # noqa: E731
    squares = jax.tree.leaves(jax.tree.map(square, params, global_params))
    return self.mu / 2 * sum(squares, start=jnp.zeros(()))


create = FedProx
