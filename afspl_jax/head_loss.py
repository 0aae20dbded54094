"""The loss at T5's head: logits exist only of tokens that count, and only of a block at a time.

A vocabulary has 32,128 pieces: the logits of 256 captions padded to 32 tokens are 1 GB, and so is
their gradient. A token's gradient for its hidden state is therefore made along with its loss, while
its logits are at hand.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from afspl_jax.losses import cross_entropy


def head_nats(
  logits: Callable[[Float[Array, "n d"]], Float[Array, "n v"]],
  hidden: Float[Array, "b t d"],
  targets: Int[Array, "b t"],
  mask: Bool[Array, "b t"],
  label_smoothing: float,
  block: int,
) -> Float[Array, " b"]:
  """Each row's cross-entropy, summed over the tokens that `mask` keeps.

  Args:
    logits: the head; nothing is differentiated but its argument.
    hidden: the decoder's states.
    targets: ids.
    mask: tokens that count.
    label_smoothing: as in `losses.cross_entropy`.
    block: tokens whose logits exist at a time.

  Returns:
    Nats, differentiable in `hidden` alone.
  """
  rows, length, width = hidden.shape

  def nats_and_slopes(hidden: Array) -> tuple[Array, Array]:
    """Of each token, zero where it does not count; its nats' gradient for its hidden state."""
    flat, number = mask.reshape(-1), -(-rows * length // block)
    order = jnp.argsort(~flat, stable=True)  # those that count come first
    slots = jnp.pad(order, (0, number * block - rows * length), mode="edge")
    counts = (flat[slots] & (jnp.arange(number * block) < rows * length)).reshape(number, block)

    def total(hidden: Array, targets: Array, counts: Array) -> tuple[Array, Array]:
      nats = cross_entropy(logits(hidden), targets, label_smoothing) * counts
      return nats.sum(), nats

    def of_block(given: tuple[Array, ...]) -> tuple[Array, Array]:
      nothing = lambda hidden, *_: (jnp.zeros_like(hidden), jnp.zeros(block))  # noqa: E731
      # Most blocks of a padded batch hold padding alone.
      return jax.lax.cond(given[2].any(), jax.grad(total, has_aux=True), nothing, *given)

    given = hidden.reshape(-1, width)[slots], targets.reshape(-1)[slots]
    blocks = tuple(x.reshape(number, block, *x.shape[1:]) for x in given)
    slopes, nats = jax.lax.map(of_block, (*blocks, counts))
    back = jnp.argsort(order)
    return nats.reshape(-1)[back].reshape(rows, length), slopes.reshape(-1, width)[back]

  @jax.custom_vjp
  def nats_of_rows(hidden: Array) -> Array:
    return nats_and_slopes(hidden)[0].sum(axis=1)

  def forward(hidden: Array) -> tuple[Array, Array]:
    nats, slopes = nats_and_slopes(hidden)
    return nats.sum(axis=1), slopes.reshape(hidden.shape)

  def backward(slopes: Array, cotangents: Array) -> tuple[Array]:
    return (cotangents[:, None, None] * slopes,)

  nats_of_rows.defvjp(forward, backward)
  return nats_of_rows(hidden)
