"""Rotary position embedding (Su et al. 2021), with the two halves of a head as pairs."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class Stretch(NamedTuple):
  """How Llama 3.1 slows rotations that are slow already, for longer texts."""

  factor: float
  low: float  # low_freq_factor
  high: float  # high_freq_factor
  positions: int  # original_max_position_embeddings


def frequencies(width: int, base: float, stretch: Stretch | None) -> Float[np.ndarray, " half"]:
  """The angle of each pair of a head's numbers from one position to the next.

  transformers `compute_default_rope_parameters` and `_compute_llama3_parameters`.

  Args:
    width: of a head.
    base: theta of the slowest rotation.
    stretch: of Llama 3.1, or None.
  """
  # float32 as in the reference.
  usual = 1 / np.float32(base) ** (np.arange(0, width, 2, dtype=np.float32) / np.float32(width))
  if stretch is None:
    return usual.astype(np.float32)
  turns = stretch.positions * usual / np.float32(2 * math.pi)  # in all of the original positions
  # From 0, slow, to 1, as usual.
  share = np.clip((turns - stretch.low) / (stretch.high - stretch.low), 0, 1)
  return ((1 - share) * usual / stretch.factor + share * usual).astype(np.float32)


def rotate(
  x: Float[Array, "b q h k"],
  positions: Int[Array, "b q"],
  angles: Float[np.ndarray, " half"],
) -> Float[Array, "b q h k"]:
  """Rotates each head's numbers by its position (transformers `apply_rotary_pos_emb`)."""
  turn = positions[..., None, None] * angles
  cos, sin = jnp.cos(turn).astype(x.dtype), jnp.sin(turn).astype(x.dtype)
  first, second = jnp.split(x, 2, axis=-1)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
