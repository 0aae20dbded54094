"""The losses of local training (BUILD.md, "Method")."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int


class TokenLoss(NamedTuple):
  """Sum and count, kept separate so that a mean over devices or batches is the mean over tokens."""

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


def contrastive(
  states: Float[Array, "b f"], captions: Float[Array, "b f"], temperature: float
) -> Float[Array, ""]:
  """Symmetric InfoNCE between each row's representation and the feature of its caption.

  Radford et al. 2021, fig. 3; van den Oord et al. 2018, eq. 4. Rows with the same caption are not
  negatives of each other.

  Args:
    states: projected representations, not zero; converted to float32.
    captions: features of any length; a row of zeros is left out, as anchor and as negative.
    temperature: of the softmax over cosine similarities.

  Returns:
    Mean over both directions and the rows that are not left out, in nats; 0 for fewer than two.
  """
  included = jnp.any(captions != 0, axis=-1)
  same = jnp.all(captions[:, None] == captions[None], axis=-1)
  # The diagonal is always kept: a row without negatives has a softmax of 1 and no loss.
  same_row = jnp.eye(len(states), dtype=bool)
  kept = same_row | (included[:, None] & included[None] & ~same)
  cosines = jnp.matmul(_unit(states), _unit(captions).T, precision=jax.lax.Precision.HIGHEST)
  logits = jnp.where(kept, cosines / temperature, -jnp.inf)
  both = jax.nn.logsumexp(logits, axis=1) + jax.nn.logsumexp(logits, axis=0)
  losses = both / 2 - jnp.diagonal(logits)
  return losses.sum() / jnp.maximum(included.sum(dtype=jnp.float32), 1.0)


def _unit(x: Float[Array, "b f"]) -> Float[Array, "b f"]:
  """Scales rows to unit length; a row of almost no length becomes zeros, without a gradient."""
  x = x.astype(jnp.float32)
  squares = jnp.sum(x * x, axis=-1, keepdims=True)
  some = squares > 1e-12
  # The inner `where` also keeps a division by 0 out of the gradient.
  return jnp.where(some, x * jax.lax.rsqrt(jnp.where(some, squares, 1.0)), 0.0)
