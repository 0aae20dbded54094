import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afspl_jax.models.prompter.pool import balance_loss
from afspl_jax.training.losses import contrastive, token_cross_entropy
from afspl_jax.training.mesh import replicate
from afspl_jax.training.optimizer import make_optimizer, make_schedule
from afspl_jax.training.train_step import make_local_training
from tests.conftest import make_batch, make_model
from tests.training.cohorts import assert_close, make_optim, of, pull

CLIENTS, STEPS = 5, 4  # 5 * 8 rows: more than one chunk of a CPU's
OPTIM = make_optim(local_steps=STEPS, balance=0.1, contrast=0.5, contrast_warmup=2.0)


@pytest.fixture(scope="module")
def with_contrast():
  return make_model(contrast=True)


def starts(model):
  """Params of five clients, each with a prompt of its own."""
  rng = np.random.default_rng(0)
  prompt = rng.normal(size=(CLIENTS, *model.params["local"]["prompt"].shape)).astype(np.float32)
  stacked = jax.tree.map(lambda x: np.stack([x] * CLIENTS), model.params)
  return stacked | {"local": stacked["local"] | {"prompt": prompt}}


@functools.cache  # a program takes seconds to compile
def program_of(captioner, contrast, mesh):
  optim = dataclasses.replace(OPTIM, contrast=contrast)
  return make_local_training(captioner, optim, 10, pull, mesh)


def train(model, params, batches, mesh, contrast=OPTIM.contrast):
  program = program_of(model.captioner, contrast, mesh)
  placed = replicate(jax.tree.map(jnp.array, params), mesh)
  frozen = replicate(model.frozen, mesh)
  return jax.device_get(program(placed, frozen, params, batches, jnp.asarray(2, jnp.int32)))


@functools.cache
def step_of_one(captioner):
  """One client's step, as it is written in the paper: no chunks, no cohort."""
  optim, optimizer, schedule = OPTIM, make_optimizer(OPTIM), make_schedule(OPTIM, 10)

  def loss_fn(params, frozen, start, batch, step):
    encoded = captioner.encode(params, frozen, batch)
    logits = captioner.logits(frozen, encoded, batch.targets)
    sums = token_cross_entropy(logits, batch.targets, batch.targets_mask, optim.label_smoothing)
    loss = sums.nats / sums.tokens
    states = captioner.summarise(frozen, encoded.states, encoded.mask)
    projected = captioner.project(params, states)
    ramp = jnp.minimum((step + 1) / (optim.contrast_warmup * optim.local_steps), 1.0)
    contrast = contrastive(projected, batch.caption, optim.contrast_temperature)
    balance = balance_loss(encoded.prompted.pool, jnp.ones(len(batch.targets)))
    rest = optim.balance * balance + optim.contrast * ramp * contrast + pull(params, start)
    return loss + rest, loss

  @jax.jit
  def step(params, frozen, start, opt_state, batch, number):
    grads, loss = jax.grad(loss_fn, has_aux=True)(params, frozen, start, batch, number)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    params = jax.tree.map(lambda p, u: p + schedule(number) * u, params, updates)
    return params, opt_state, loss

  return step


def train_one(model, params, batches):
  """The same for one client."""
  start, opt_state, losses = params, make_optimizer(OPTIM).init(params), []
  for i in range(STEPS):
    rest = start, opt_state, of(batches, i), 2 + i
    params, opt_state, loss = step_of_one(model.captioner)(params, model.frozen, *rest)
    losses.append(loss)
  return params, losses


def assert_same_bits(one, other):
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    np.testing.assert_array_equal(a, b)


def test_a_cohort_trains_as_each_of_its_clients_would_alone(with_contrast, one_device):
  params, batches = starts(with_contrast), make_batch(0, STEPS, CLIENTS, 8)
  together, metrics = train(with_contrast, params, batches, one_device)
  for client in range(CLIENTS):
    alone, losses = train_one(with_contrast, of(params, client), of(batches, client, 1))
    assert_close(of(together, client), alone)
    np.testing.assert_allclose(metrics.loss[:, client], losses, rtol=1e-6)


def test_a_client_gets_the_same_result_in_any_cohort(with_contrast, one_device):
  params, batches = starts(with_contrast), make_batch(0, STEPS, CLIENTS, 8)
  together, metrics = train(with_contrast, params, batches, one_device)
  alone, single = train(with_contrast, of(params, [3]), of(batches, [3], 1), one_device)
  assert_close(of(together, [3]), alone)
  np.testing.assert_allclose(metrics.grad_norm[:, [3]], single.grad_norm, rtol=1e-5)


@pytest.mark.parametrize("broken", ["tokens", "text"])
@pytest.mark.parametrize("contrast", [0.0, 0.5])
def test_a_client_with_nan_features_does_not_disturb_the_others(
  with_contrast, one_device, broken, contrast
):
  params, batches = starts(with_contrast), make_batch(0, STEPS, CLIENTS, 8)
  features = getattr(batches, broken)
  some = batches._replace(**{broken: features.at[:, 2, 5].set(jnp.nan)})
  late = batches._replace(**{broken: features.at[2:, 2].set(jnp.inf)})
  healthy, _ = train(with_contrast, params, batches, one_device, contrast)
  for bad, finite in ((some, [False] * 4), (late, [True, True, False, False])):
    trained, metrics = train(with_contrast, params, bad, one_device, contrast)
    np.testing.assert_array_equal(metrics.finite[:, 2], finite)
    for client in (0, 1, 3, 4):
      assert metrics.finite[:, client].all()
      assert_same_bits(of(trained, client), of(healthy, client))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trained))
  assert_same_bits(
    of(train(with_contrast, params, some, one_device, contrast)[0], 2), of(params, 2)
  )


def test_clients_that_fill_up_a_cohort_change_nothing(with_contrast, one_device):
  params, batches = starts(with_contrast), make_batch(0, STEPS, CLIENTS, 8)
  whole, _ = train(with_contrast, params, batches, one_device)
  filled = [0, 1, 2, 0, 0]
  part, _ = train(with_contrast, of(params, filled), of(batches, filled, 1), one_device)
  for client in range(3):
    assert_close(of(part, client), of(whole, client))


def test_one_and_four_devices_train_the_same_cohort(with_contrast, one_device, four_devices):
  params, batches = starts(with_contrast), make_batch(0, STEPS, CLIENTS, 8)
  one, one_metrics = train(with_contrast, params, batches, one_device)
  four, four_metrics = train(with_contrast, params, batches, four_devices)
  assert_close(four, one)
  np.testing.assert_allclose(one_metrics.loss, four_metrics.loss, rtol=1e-6)
  np.testing.assert_allclose(one_metrics.contrast, four_metrics.contrast, rtol=1e-5)


def test_devices_share_the_rows_of_a_chunk(with_contrast, four_devices):
  """T5's products on one device are of a quarter of the chunk's rows."""
  optim = dataclasses.replace(OPTIM, batch_size=32, contrast=0.0)
  program = make_local_training(with_contrast.captioner, optim, 10, pull, four_devices)
  params, batches = starts(with_contrast), make_batch(0, STEPS, CLIENTS, 32)
  lowered = program.lower(params, with_contrast.frozen, params, batches, jnp.asarray(0))
  text = lowered.compile().as_text()
  rows, length = CLIENTS * 32 // 2 // 4, with_contrast.params["mapper"]["place"].shape[0] + 4 + 5
  assert f"f32[{rows},{length},16]" in text
  assert f"f32[{4 * rows},{length},16]" not in text
