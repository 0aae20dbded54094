import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afspl_jax.head_loss import head_nats
from afspl_jax.losses import token_cross_entropy

ROWS, LENGTH, WIDTH, WORDS = 5, 7, 6, 11


def case(kept):
  rng = np.random.default_rng(0)
  hidden = jnp.asarray(rng.normal(size=(ROWS, LENGTH, WIDTH)), jnp.float32)
  head = jnp.asarray(rng.normal(size=(WIDTH, WORDS)), jnp.float32)
  targets = jnp.asarray(rng.integers(WORDS, size=(ROWS, LENGTH)))
  mask = jnp.asarray(rng.random((ROWS, LENGTH)) < kept)
  return hidden, head, targets, mask


@pytest.mark.parametrize("kept", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("block", [1, 4, 64])
def test_blocks_give_the_loss_and_gradient_of_all_logits_at_once(block, kept):
  hidden, head, targets, mask = case(kept)
  weights = jnp.arange(1.0, 1 + ROWS)

  def ours(hidden):
    nats = head_nats(lambda x: x @ head, hidden, targets, mask, 0.1, block)
    return (weights * nats).sum(), nats

  def plainly(hidden):
    nats = jnp.stack(
      [
        token_cross_entropy(hidden[i : i + 1] @ head, targets[i : i + 1], mask[i : i + 1], 0.1).nats
        for i in range(ROWS)
      ]
    )
    return (weights * nats).sum(), nats

  found, expected = (jax.jit(jax.grad(f, has_aux=True))(hidden) for f in (ours, plainly))
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(np.asarray(found[0])[~np.asarray(mask)], 0)


def test_what_is_padding_may_hold_anything():
  hidden, head, targets, mask = case(0.5)
  broken = jnp.where(mask[..., None], hidden, jnp.nan)

  def total(hidden):
    return head_nats(lambda x: x @ head, hidden, targets, mask, 0.0, 64).sum()

  clean = jax.grad(total)(hidden)
  kept = np.asarray(mask)
  np.testing.assert_allclose(jax.grad(total)(broken)[kept], clean[kept], rtol=1e-6)
