"""FedAvg: the plain weighted average.

McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data",
Algorithm 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from afspl_jax.federation.strategies import Reply
from afspl_jax.types import Params


@dataclass(frozen=True)
class FedAvg:
  """Averages the sites' params, weighted by their numbers of examples."""

  def client_penalty(self, params: Params, global_params: Params) -> Float[Array, ""]:
    """Zero: sites minimise their own loss."""
    return jnp.zeros(())

  def init(self, params: Params) -> dict[str, Array]:
    """FedAvg keeps nothing between rounds."""
    return {}

  def aggregate(
    self, params: Params, state: dict[str, Array], replies: Sequence[Reply]
  ) -> tuple[Params, dict[str, Array]]:
    """The weighted mean, summed in float64 in the order of site names, in the leaves' dtypes."""
    replies = sorted(replies, key=lambda reply: reply.site)
    total = sum(reply.num_examples for reply in replies)

    def mean(old, *leaves):
      terms = (r.num_examples * x.astype(np.float64) for r, x in zip(replies, leaves, strict=True))
      return np.asarray(sum(terms) / total).astype(old.dtype)

    return jax.tree.map(mean, params, *(reply.params for reply in replies)), state


create = FedAvg
