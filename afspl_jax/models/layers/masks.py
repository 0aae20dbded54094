"""Masks as what attention adds to its scores, and means over what a mask keeps."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from afspl_jax.models.layers.attention import HIDDEN


def hide_padding(mask: Bool[Array, "b l"]) -> Float[Array, "b 1 1 l"]:
  """`HIDDEN` at positions that no query may attend to, else 0."""
  return jnp.where(mask, 0.0, HIDDEN)[:, None, None, :]


def hide_later(length: int) -> Float[Array, "1 1 q q"]:
  """`HIDDEN` at positions after the query's, else 0."""
  past = jnp.tril(jnp.ones((length, length), bool))
  return jnp.where(past, 0.0, HIDDEN)[None, None]


def masked_mean(x: Float[Array, "b l d"], mask: Bool[Array, "b l"]) -> Float[Array, "b d"]:
  """The mean of the positions that `mask` keeps, at least one in each row."""
  kept = mask[..., None]
  return jnp.sum(x * kept, axis=1) / jnp.sum(kept, axis=1)
