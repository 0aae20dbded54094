import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afspl_jax.models.captioner import soft_prefix
from afspl_jax.training.chunked_loss import ChunkedLoss
from afspl_jax.training.losses import token_cross_entropy
from tests.conftest import T5_CONFIG, make_batch

ROWS, LENGTH, CUTS = 70, 40, (0.2, 0.5)  # three chunks on a CPU, of 8, 20 and 40 tokens


def batch_of(lengths):
  rng = np.random.default_rng(0)
  batch = make_batch(0, len(lengths))
  targets = rng.integers(2, T5_CONFIG.vocab_size, size=(len(lengths), LENGTH)).astype(np.int32)
  mask = np.arange(LENGTH) < np.asarray(lengths)[:, None]
  return batch._replace(targets=jnp.asarray(targets), targets_mask=jnp.asarray(mask))


def plainly(model, made, batch, weights, pull, smoothing):
  """All rows at once, at full length, and no gradient of one's own."""
  states, mask = model.captioner.encode_prefix(
    model.frozen, made, batch.instruction, batch.instruction_mask
  )
  logits = model.captioner.target_logits(model.frozen, states, mask, batch.targets)
  nats = jnp.stack(
    [
      token_cross_entropy(logits[i : i + 1], batch.targets[i : i + 1], row[None], smoothing).nats
      for i, row in enumerate(batch.targets_mask)
    ]
  )
  return weights * nats + jnp.sum(
    pull * model.captioner.summarise(model.frozen, states, mask), axis=-1
  ), nats


LENGTHS = {
  "mixed": np.random.default_rng(1).permutation([1, 2, 8, 9, 20, 21, 40] * 10),
  "short": np.full(ROWS, 3),
  "long": np.full(ROWS, LENGTH),
  "none": np.arange(ROWS) % 5,  # some rows only fill up their batch
}


@pytest.mark.parametrize("devices", ["one_device", "four_devices"])
def test_sorted_chunks_give_the_costs_and_gradients_of_all_rows_at_once(model, devices, request):
  rng = np.random.default_rng(2)
  weights = jnp.asarray(rng.random(ROWS), jnp.float32)
  pull = jnp.asarray(rng.normal(size=(ROWS, T5_CONFIG.width)), jnp.float32)
  chunked_loss = ChunkedLoss(model.captioner, 0.1, request.getfixturevalue(devices), CUTS)

  def ours(made, batch):
    costs, nats = chunked_loss(model.frozen, made, batch, weights, pull)
    return (costs * jnp.arange(ROWS)).sum(), (costs, nats)

  def theirs(made, batch):
    costs, nats = plainly(model, made, batch, weights, pull, 0.1)
    return (costs * jnp.arange(ROWS)).sum(), (costs, nats)

  prompt = jax.jit(lambda params, batch: soft_prefix(model.captioner.prompt(params, batch)))
  ours, theirs = (jax.jit(jax.grad(function, has_aux=True)) for function in (ours, theirs))
  for lengths in LENGTHS.values():
    batch = batch_of(lengths)
    made = prompt(model.params, batch)
    found, expected = ours(made, batch), theirs(made, batch)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(np.abs(b).max()))
  assert ours._cache_size() == 1  # whatever the lengths


def test_summaries_have_no_gradient(model, one_device):
  batch = batch_of(LENGTHS["mixed"])
  made = soft_prefix(model.captioner.prompt(model.params, batch))
  chunked_loss = ChunkedLoss(model.captioner, 0.0, one_device, CUTS)

  @jax.jit
  def plain(made):
    encoded = model.captioner.encode_prefix(
      model.frozen, made, batch.instruction, batch.instruction_mask
    )
    return model.captioner.summarise(model.frozen, *encoded)

  def total(made):
    states = chunked_loss.summaries(model.frozen, made, batch)
    return states.sum(), states

  grads, states = jax.jit(jax.grad(total, has_aux=True))(made)
  np.testing.assert_allclose(states, plain(made), atol=1e-5)
  assert not np.asarray(grads).any()


def test_a_chunk_of_short_targets_does_not_pay_for_long_ones(model, one_device):
  """Of the programs in the switch, only the one for full length makes full-length logits."""
  batch = batch_of(LENGTHS["mixed"])
  made = soft_prefix(model.captioner.prompt(model.params, batch))
  chunked_loss = ChunkedLoss(model.captioner, 0.0, one_device, CUTS)
  weights = jnp.ones(ROWS)
  text = str(jax.make_jaxpr(lambda made: chunked_loss(model.frozen, made, batch, weights)[0])(made))
  size = -(-ROWS // 3)
  for cut in (8, 20, 40):
    assert f"f32[{size},{cut},{T5_CONFIG.vocab_size}]" in text
  assert f"f32[{ROWS},{LENGTH},{T5_CONFIG.vocab_size}]" not in text
