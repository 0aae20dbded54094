"""What local training minimises (DESIGN, "Method": Loss)."""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int


class TokenLoss(NamedTuple):
  """Sum and count apart, so that a mean over devices or batches is the mean over tokens."""

  nats: Float[Array, ""]  # summed over tokens
  tokens: Float[Array, ""]


def token_cross_entropy(
  logits: Float[Array, "b t n"],
  targets: Int[Array, "b t"],
  mask: Bool[Array, "b t"],
  label_smoothing: float = 0.0,
) -> TokenLoss:
  """Cross-entropy over the tokens that `mask` keeps.

  Label smoothing mixes the target with the uniform distribution (Szegedy et al. 2016, sec. 7).
  """
  logits = logits.astype(jnp.float32)
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
  if label_smoothing:
    # -mean log p, without another [b t n] array of log-probabilities.
    normaliser = losses + jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    uniform = normaliser - logits.mean(axis=-1)
    losses = (1 - label_smoothing) * losses + label_smoothing * uniform
  return TokenLoss(jnp.sum(losses * mask), jnp.sum(mask, dtype=jnp.float32))
