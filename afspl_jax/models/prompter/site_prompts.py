"""Prompts of sites, found by the image alone: what the global model has instead of a local prompt.

A site is a class of a Gaussian classifier over images' joint features (linear discriminant
analysis, Fisher 1936). The server sets its keys and its query once, from image statistics
(federation/server/routing.py); nobody trains them. An image gets the mean of the sites' prompts,
weighted by the probability that it is from each site.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from afspl_jax.types import Params

SITES = "sites"  # the name of these leaves in a prompter
ROUTING_LEAVES = ("sites/keys", "sites/query/bias", "sites/query/kernel")


def fixed_leaves(shared: Params) -> tuple[str, ...]:
  """Names of the shared leaves that nobody trains or sends; the server sets them once."""
  return ROUTING_LEAVES if "keys" in shared.get(SITES, {}) else ()


class SiteChoice(NamedTuple):
  """The prompt of the site that each image is from."""

  prompt: Float[Array, "b p d"]
  known: Bool[Array, " b"]  # False: no image tells the sites apart


class SitePrompts(nnx.Module):
  """k prompts of sites, and the classifier that finds the site of an image.

  Args:
    prompts: initial prompts.
    feature_width: f, of the joint feature of an image.
  """

  def __init__(self, prompts: Float[Array, "k p d"], *, feature_width: int, rngs: nnx.Rngs):
    number = prompts.shape[0]
    self.prompts = nnx.Param(prompts)
    zeros = nnx.initializers.zeros
    # k means span k - 1 directions. All keys are zero until they are set.
    self.keys = nnx.Param(jnp.zeros((number, number)))
    self.query = nnx.Linear(feature_width, number, kernel_init=zeros, rngs=rngs)

  def __call__(self, image: Float[Array, "b f"]) -> SiteChoice:
    """Finds the prompts of images, given as features of unit length."""
    # Coordinates in which a site is a Gaussian of unit variance around its key.
    query, keys = jax.lax.stop_gradient((self.query(image), self.keys[...]))
    distance = jnp.square(query[:, None] - keys).sum(axis=-1)
    weights = jax.nn.softmax(-distance / 2, axis=-1)
    prompt = jnp.einsum("bk,kpd->bpd", weights, self.prompts[...])
    return SiteChoice(prompt, jnp.broadcast_to(jnp.any(keys != 0), image.shape[:1]))
