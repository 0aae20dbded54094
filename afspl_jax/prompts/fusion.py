"""Fusion: the weights of the prompt sources (DESIGN, "Method")."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from afspl_jax.config import choice
from afspl_jax.errors import UserError


class Fusion(nnx.Module):
  """Weighs s prompt sources: by given weights, by s free scalars, or for each sample.

  Args:
    strategy: "static" | "learned" | "dynamic".
    num_sources: s.
    weights: for "static", not negative and not all zero; empty means equal weights.
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
    choice("prompter.fusion", strategy, ("static", "learned", "dynamic"))
    self.strategy = strategy
    if strategy == "static":
      given = weights or (1.0,) * num_sources
      if len(given) != num_sources or min(given) < 0 or sum(given) <= 0:
        raise UserError(
          f"prompter.fusion_weights: expected {num_sources} weights, none negative and not all"
          f" zero; got {weights}"
        )
      self.weights = tuple(w / sum(given) for w in given)
    elif strategy == "learned":
      self.scores = nnx.Param(jnp.zeros(num_sources))
    else:
      self.hidden = nnx.Linear(2 * feature_width, hidden, rngs=rngs)
      zeros = nnx.initializers.zeros
      self.score = nnx.Linear(hidden, num_sources, kernel_init=zeros, rngs=rngs)

  def __call__(self, features: Float[Array, "b two_f"]) -> Float[Array, "b s"]:
    """Returns weights that sum to 1 over sources; uniform before training, unless static."""
    if self.strategy == "dynamic":
      return jax.nn.softmax(self.score(jax.nn.gelu(self.hidden(features))), axis=-1)
    fixed = self.weights if self.strategy == "static" else jax.nn.softmax(self.scores[...])
    fixed = jnp.asarray(fixed)
    return jnp.broadcast_to(fixed, (features.shape[0], fixed.shape[0]))
