"""A corrected cohort: what its gradients are corrected by, and what is told of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from afspl_jax.models.prompter.local import LOCAL, join_local, split_local
from afspl_jax.models.prompter.pool import balance_loss
from afspl_jax.training.losses import token_cross_entropy
from afspl_jax.training.mesh import replicate
from afspl_jax.training.optimizer import make_optimizer, make_schedule
from afspl_jax.training.train_step import make_local_training
from tests.conftest import make_batch
from tests.training.cohorts import assert_close, make_optim, of

CLIENTS, STEPS, FIRST = 3, 4, 2
GRADIENTS = 5e-6  # tolerance: those of params that are equal to 1e-6
OPTIM = make_optim(local_steps=STEPS, balance=0.1, clip_norm=1.0)


def no_penalty(params, global_params):
  return jnp.zeros(())


@pytest.fixture(scope="module")
def program(model, one_device):
  return make_local_training(model.captioner, OPTIM, 10, no_penalty, one_device, controls=True)


@pytest.fixture(scope="module")
def starts(model):
  """Each client with a prompt of its own."""
  rng = np.random.default_rng(0)
  stacked = jax.tree.map(lambda x: np.stack([x] * CLIENTS), model.params)
  prompt = rng.normal(size=stacked[LOCAL]["prompt"].shape).astype(np.float32)
  return stacked | {LOCAL: {"prompt": prompt}}


@pytest.fixture(scope="module")
def corrections(starts):
  """Of the size of gradients, and of all leaves that travel."""
  rng = np.random.default_rng(1)
  draw = lambda x: np.asarray(0.05 * rng.normal(size=x.shape), np.float32)  # noqa: E731
  return jax.tree.map(draw, split_local(starts)[0])


@pytest.fixture(scope="module")
def batches():
  return make_batch(0, STEPS, CLIENTS, 8)


@pytest.fixture(scope="module")
def train(model, program, one_device):
  def run(params, batches, corrections):
    placed = replicate(jax.tree.map(jnp.array, params), one_device)
    frozen = replicate(model.frozen, one_device)
    first = jnp.asarray(FIRST, jnp.int32)
    return jax.device_get(program(placed, frozen, params, batches, first, corrections))

  return run


@functools.cache
def gradient(captioner):
  def loss_fn(params, frozen, batch):
    encoded = captioner.encode(params, frozen, batch)
    logits = captioner.logits(frozen, encoded, batch.targets)
    sums = token_cross_entropy(logits, batch.targets, batch.targets_mask, OPTIM.label_smoothing)
    balance = balance_loss(encoded.prompted.pool, jnp.ones(len(batch.targets)))
    return sums.nats / sums.tokens + OPTIM.balance * balance

  return jax.jit(jax.grad(loss_fn))


def by_hand(model, params, batches, correction):
  """One client's steps as the paper has them; its params, its gradients, norms of the steps'."""
  optimizer, schedule = make_optimizer(OPTIM), make_schedule(OPTIM, 10)
  opt_state, update, found, norms = optimizer.init(params), jax.jit(optimizer.update), [], []
  for i in range(STEPS):
    grads = gradient(model.captioner)(params, model.frozen, of(batches, i))
    shared, own = split_local(grads)
    corrected = join_local(jax.tree.map(lambda g, c: g + c, shared, correction), own)
    updates, opt_state = update(corrected, opt_state, params)
    params = jax.tree.map(lambda p, u, i=i: p + schedule(FIRST + i) * u, params, updates)
    found.append(shared)
    norms.append(optax.tree.norm(corrected))
  return params, found, norms


def mean(trees):
  return jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *trees)


def test_steps_are_corrected_before_clipping_and_the_mean_is_of_raw_gradients(
  model, train, starts, batches, corrections
):
  trained, metrics, gradients = train(starts, batches, corrections)
  assert LOCAL not in gradients
  for client in range(CLIENTS):
    alone = of(starts, client), of(batches, client, 1), of(corrections, client)
    params, found, norms = by_hand(model, *alone)
    assert min(norms) > OPTIM.clip_norm  # or the order of the two would not show
    assert_close(of(trained, client), params)
    assert_close(of(gradients, client), mean(found), GRADIENTS)
    np.testing.assert_allclose(metrics.grad_norm[:, client], norms, rtol=1e-5)


def test_a_cohort_is_corrected_as_each_of_its_clients_would_be_alone(
  train, starts, batches, corrections
):
  together = train(starts, batches, corrections)
  for client in range(CLIENTS):
    params, _, gradients = train(
      of(starts, [client]), of(batches, [client], 1), of(corrections, [client])
    )
    assert_close(of(together[0], [client]), params)
    assert_close(of(together[2], [client]), gradients, GRADIENTS)


def test_a_correction_of_zeros_has_no_effect(
  model, train, starts, batches, corrections, one_device
):
  plain = make_local_training(model.captioner, OPTIM, 10, no_penalty, one_device)
  zeros = jax.tree.map(np.zeros_like, corrections)
  trained, metrics, _ = train(starts, batches, zeros)
  placed = replicate(jax.tree.map(jnp.array, starts), one_device)
  first = jnp.asarray(FIRST, jnp.int32)
  expected = jax.device_get(plain(placed, model.frozen, starts, batches, first))
  assert_close((trained, metrics.loss), (expected[0], expected[1].loss))
  moved = train(starts, batches, corrections)[0]
  assert not np.allclose(moved["pool"]["prompts"], trained["pool"]["prompts"], atol=1e-3)


def test_a_step_that_is_not_finite_is_not_in_the_mean(model, train, starts, batches, corrections):
  tokens = batches.tokens.at[1, 0, 5].set(jnp.nan).at[:, 2].set(jnp.inf)
  trained, metrics, gradients = train(starts, batches._replace(tokens=tokens), corrections)
  np.testing.assert_array_equal(metrics.finite[:, 0], [True, False, True, True])
  assert metrics.finite[:, 1].all() and not metrics.finite[:, 2].any()
  healthy = train(starts, batches, corrections)
  jax.tree.map(np.testing.assert_array_equal, of(gradients, 1), of(healthy[2], 1))
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((trained, gradients)))
  assert all((leaf == 0).all() for leaf in jax.tree.leaves(of(gradients, 2)))
  # The first gradient is from before the bad step.
  params, first = of(starts, 0), of(of(batches, 0), 0)
  grads = split_local(gradient(model.captioner)(params, model.frozen, first))[0]
  one_step = batches._replace(tokens=batches.tokens.at[1:, 0].set(jnp.nan))
  assert_close(of(train(starts, one_step, corrections)[2], 0), grads, GRADIENTS)


def test_corrections_do_not_depend_on_the_number_of_devices(
  model, train, starts, batches, corrections, four_devices
):
  program = make_local_training(model.captioner, OPTIM, 10, no_penalty, four_devices, controls=True)
  placed = replicate(jax.tree.map(jnp.array, starts), four_devices)
  frozen, first = replicate(model.frozen, four_devices), jnp.asarray(FIRST, jnp.int32)
  params, _, gradients = jax.device_get(
    program(placed, frozen, starts, batches, first, corrections)
  )
  one = train(starts, batches, corrections)
  assert_close(params, one[0])
  assert_close(gradients, one[2], GRADIENTS)
