"""Fusion: the weights of the prompt sources (BUILD.md, "Method")."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from afspl_jax.errors import UserError


class Fusion(nnx.Module):
  """Weights s prompt sources: by given weights, by s learned scalars, or for each sample.

  Args:
    strategy: "static" | "learned" | "dynamic".
    num_sources: s.
    weights: for "static", not negative and the first three not all zero; empty means equal.
    feature_width: f, of the image's and the instruction's feature.
    hidden: width of the dynamic network's hidden layer.
  """

  def __init__(
    self,
    strategy: str,
    num_sources: int,
    *,
    weights: tuple[float, ...],
    feature_width: int,
    hidden: int,
    rngs: nnx.Rngs,
  ):
    self.strategy = strategy
    if strategy == "static":
      given = weights or (1.0,) * num_sources
      # The last source may be the local prompt, which the server and new clients do not have.
      if len(given) != num_sources or min(given) < 0 or sum(given[:3]) <= 0:
        raise UserError(
          f"prompter.fusion_weights: expected {num_sources} weights, none negative and the first"
          f" three not all zero; got {weights}"
        )
      self.weights = tuple(w / sum(given) for w in given)
    elif strategy == "learned":
      self.scores = nnx.Param(jnp.zeros(num_sources))
    else:
      self.hidden = nnx.Linear(2 * feature_width, hidden, rngs=rngs)
      zeros = nnx.initializers.zeros
      self.score = nnx.Linear(hidden, num_sources, kernel_init=zeros, rngs=rngs)

  def __call__(
    self, features: Float[Array, "b two_f"], available: Bool[Array, "b s"]
  ) -> Float[Array, "b s"]:
    """Returns weights that sum to 1 over the available sources, and are exactly 0 elsewhere.

    Uniform before training, unless static.
    """
    if self.strategy == "static":
      weights = jnp.asarray(self.weights) * available
      return weights / weights.sum(axis=-1, keepdims=True)
    if self.strategy == "dynamic":
      scores = self.score(jax.nn.gelu(self.hidden(features)))
    else:
      scores = jnp.broadcast_to(self.scores[...], available.shape)
    return jax.nn.softmax(scores, axis=-1, where=available)
