"""FedAvg: the plain weighted average, of every row over the sites that sent it.

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
  """Averages the sites' params, weighted by their numbers of examples; unsent rows stay."""

  def client_penalty(self, params: Params, global_params: Params) -> Float[Array, ""]:
    """Zero: sites minimise their own loss."""
    return jnp.zeros(())

  def init(self, params: Params) -> dict[str, Array]:
    """FedAvg keeps nothing between rounds."""
    return {}

  def aggregate(
    self, params: Params, state: dict[str, Array], replies: Sequence[Reply]
  ) -> tuple[Params, dict[str, Array]]:
    """Weighted means, summed in float64 in the order of site names, in the leaves' dtypes."""
    replies = sorted(replies, key=lambda reply: reply.site)

    def mean(old, *leaves_and_masks):
      leaves, masks = leaves_and_masks[: len(replies)], leaves_and_masks[len(replies) :]
      weights = [r.num_examples * mask for r, mask in zip(replies, masks, strict=True)]
      terms = (w * x.astype(np.float64) for w, x in zip(weights, leaves, strict=True))
      total = sum(weights)
      return np.where(total > 0, (sum(terms) / np.maximum(total, 1)).astype(old.dtype), old)

    trees = [*(reply.params for reply in replies), *(reply.masks for reply in replies)]
    return jax.tree.map(mean, params, *trees), state


create = FedAvg
