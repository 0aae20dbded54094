"""Scaled or unscaled dot-product attention over heads, shared by all backbones."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from afspl_jax.models.layers.products import einsum

# Added to the scores of hidden positions. Finite, so that a row without visible positions gives a
# mean and not a NaN; small enough that the sum of two is a finite float32.
HIDDEN = -1e30


def attend(
  query: Float[Array, "b q h k"],
  key: Float[Array, "b m h k"],
  value: Float[Array, "b m h k"],
  bias: Float[Array, "#b #h #q m"],
  scale: float = 1.0,
) -> Float[Array, "b q h k"]:
  """Mixes values by softmax(scale * query . key + bias).

  Args:
    query: one vector for each of q positions and h heads.
    key: one vector for each of m attended positions.
    value: one vector for each attended position.
    bias: float32, added to the scores: position biases, and `HIDDEN` where q must not attend to m.
    scale: 1/sqrt(k) in CLIP (Vaswani et al. 2017, sec. 3.2.1), 1 in T5.

  Returns:
    The mixtures, in the dtype of `value`; scores and softmax are always in float32.
  """
  # Transposed before the products: if einsum transposes, the forward pass takes 1.2 to 1.9 times as
  # long on a CPU.
  query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))
  scores = einsum("bhqk,bhmk->bhqm", query, key, jnp.float32)
  weights = jax.nn.softmax(scores * scale + bias, axis=-1)
  mixed = einsum("bhqm,bhmk->bhqk", weights.astype(value.dtype), value, value.dtype)
  return mixed.transpose(0, 2, 1, 3)


def attend_grouped(
  query: Float[Array, "b q h k"],
  key: Float[Array, "b m g k"],
  value: Float[Array, "b m g k"],
  bias: Float[Array, "#b 1 #q m"],
  scale: float = 1.0,
) -> Float[Array, "b q h k"]:
  """`attend`, where groups of neighbouring heads share keys and values (Ainslie et al. 2023).

  Args:
    query: one vector for each of q positions and h heads.
    key: one vector for each of m attended positions and g groups; g divides h.
    value: one vector for each attended position and group.
    bias: float32, added to the scores of all heads.
    scale: of the scores.

  Returns:
    The mixtures, in the dtype of `value`; scores and softmax are always in float32.
  """
  (rows, queries, heads, width), groups = query.shape, key.shape[2]
  query = query.reshape(rows, queries, groups, -1, width).transpose(0, 2, 3, 1, 4)
  key, value = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)
  scores = einsum("bgrqk,bgmk->bgrqm", query, key, jnp.float32)
  weights = jax.nn.softmax(scores * scale + bias[:, :, None], axis=-1)
  mixed = einsum("bgrqm,bgmk->bgrqk", weights.astype(value.dtype), value, value.dtype)
  return mixed.transpose(0, 3, 1, 2, 4).reshape(rows, queries, heads, width)
