"""A pool of candidate prompts, and adaptive selection from it (BUILD.md, "Method")."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from afspl_jax.errors import UserError


class PoolChoice(NamedTuple):
  """The pool's output for each sample."""

  prompt: Float[Array, "b p d"]  # weighted sum of the selected prompts
  weights: Float[Array, "b m"]  # exactly 0 for prompts not selected; each row sums to 1
  probabilities: Float[Array, "b m"]  # before the selection, for the load balance


class PromptPool(nnx.Module):
  """m prompts with keys, matched to a query from the features of image and instruction.

  Keys and query as in L2P (Wang et al. 2022, sec. 4.2). The number of selected prompts differs by
  sample: the fewest whose probabilities sum to `mass`, as in top-p routing (Huang et al. 2024).

  Args:
    prompts: initial prompts.
    feature_width: f, of both features.
    key_width: h, of keys and query.
    mode: "adaptive" | "fixed" (always k_max) | "dense" (all m).
    mass: in (0, 1], for "adaptive".
    k_min: fewest selected prompts.
    k_max: most selected prompts.
    temperature: of the softmax over cosine similarities.
  """

  def __init__(
    self,
    prompts: Float[Array, "m p d"],
    *,
    feature_width: int,
    key_width: int,
    mode: str,
    mass: float,
    k_min: int,
    k_max: int,
    temperature: float,
    rngs: nnx.Rngs,
  ):
    number = prompts.shape[0]
    if not 1 <= k_min <= k_max <= number:
      raise UserError(
        f"prompter: expected 1 <= k_min <= k_max <= pool; got {k_min}, {k_max} and {number}"
      )
    self.prompts = nnx.Param(prompts)
    self.keys = nnx.Param(jax.random.normal(rngs.params(), (number, key_width)))
    self.query = nnx.Linear(2 * feature_width, key_width, rngs=rngs)
    self.mode, self.mass, self.temperature = mode, mass, temperature
    self.k_min, self.k_max = k_min, k_max

  def __call__(self, features: Float[Array, "b two_f"]) -> PoolChoice:
    """Selects and mixes prompts; `features` are image and instruction, each of unit length."""
    similarity = unit_vectors(self.query(features)) @ unit_vectors(self.keys[...]).T
    probabilities = jax.nn.softmax(similarity / self.temperature, axis=-1)
    weights = self._weights(probabilities)
    prompt = jnp.einsum("bm,mpd->bpd", weights, self.prompts[...])
    return PoolChoice(prompt, weights, probabilities)

  def _weights(self, probabilities: Float[Array, "b m"]) -> Float[Array, "b m"]:
    if self.mode == "dense":
      return probabilities
    # Static shapes, so that one compiled program serves every k: take k_max, then mask.
    top, index = jax.lax.top_k(probabilities, self.k_max)
    if self.mode == "adaptive":
      mass_before = jnp.cumsum(top, axis=-1) - top
      wanted = (mass_before < self.mass) | (jnp.arange(self.k_max) < self.k_min)
      top = jnp.where(wanted, top, 0.0)
    top = top / top.sum(axis=-1, keepdims=True)
    rows = jnp.arange(probabilities.shape[0])[:, None]
    return jnp.zeros_like(probabilities).at[rows, index].set(top)


def balance_loss(chosen: PoolChoice, rows: Float[Array, " b"]) -> Float[Array, ""]:
  """Load balance (Fedus et al. 2021, eq. 4): 1 if all prompts are used equally, m at worst.

  Args:
    chosen: output of the pool.
    rows: 1 for rows that count, 0 for rows that fill up the batch.
  """
  total = jnp.maximum(rows.sum(), 1.0)
  used = rows @ jax.lax.stop_gradient(chosen.weights) / total
  probable = rows @ chosen.probabilities / total
  return chosen.weights.shape[-1] * jnp.sum(used * probable)


def unit_vectors(x: Float[Array, "*b h"]) -> Float[Array, "*b h"]:
  """Scales vectors to unit length, in float32; zero stays zero."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.square(x).sum(axis=-1, keepdims=True) + 1e-12)
