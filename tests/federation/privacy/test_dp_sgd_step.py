"""DP-SGD's step: what one example can do, what noise does, and that nothing else changes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from afspl_jax.config.experiment import Optim, Privacy
from afspl_jax.errors import UserError
from afspl_jax.federation.contracts import StepNoise
from afspl_jax.federation.privacy.dp_sgd_step import clipped_sums, make_private_training
from afspl_jax.federation.privacy.noise import coarse_step
from afspl_jax.models.captioner import soft_prefix
from afspl_jax.training.losses import token_cross_entropy
from afspl_jax.training.mesh import replicate
from afspl_jax.training.optimizer import make_optimizer, make_schedule
from benchmarks.attacks import success
from tests.conftest import make_batch
from tests.training.cohorts import assert_close, make_optim, of, pull

CLIENTS, STEPS, ROWS = 3, 2, 16
OPTIM = make_optim(local_steps=STEPS, balance=0.0)
CLIP, NOISE = 0.5, 2.0
FINE = 2.0**-10  # a noise multiplier whose grid is finer than the tests' tolerances
STEP = coarse_step(CLIP * FINE)


@functools.cache  # a program takes seconds to compile, and so there is one
def program_of(captioner, mesh):
  privacy = Privacy(example_clip=CLIP, example_noise=FINE)
  return make_private_training(captioner, OPTIM, privacy, 10, pull, mesh)


def starts(model):
  return jax.tree.map(lambda leaf: np.stack([leaf] * CLIENTS), model.params)


def noise_of(model, std=CLIP * NOISE, seed=0):
  """In steps of the program's grid."""
  rng = np.random.default_rng(seed)
  draw = lambda leaf: rng.normal(0, std / STEP, (STEPS, CLIENTS, *leaf.shape))  # noqa: E731
  return jax.tree.map(lambda leaf: np.rint(draw(leaf)).astype(np.int32), model.params)


def in_units(steps):
  return jax.tree.map(lambda leaf: leaf * STEP, steps)


def train(model, mesh, batches, noise, expected=(8, 8, 8), params=None):
  params = starts(model) if params is None else params
  placed, frozen = replicate(jax.tree.map(jnp.array, params), mesh), replicate(model.frozen, mesh)
  private = StepNoise(noise, jnp.asarray(expected, jnp.float32))
  first = jnp.asarray(2, jnp.int32)
  program = program_of(model.captioner, mesh)
  return jax.device_get(program(placed, frozen, params, batches, first, private))


@pytest.fixture(scope="module")
def gradient(model):
  """Of an example's loss, from a batch of one, as the paper writes it: no chunks, no cohort."""

  def loss(params, example):
    alone = jax.tree.map(lambda x: x[None], example)
    encoded = model.captioner.encode(params, model.frozen, alone)
    logits = model.captioner.logits(model.frozen, encoded, alone.targets)
    sums = token_cross_entropy(logits, alone.targets, alone.targets_mask, OPTIM.label_smoothing)
    return sums.nats / sums.tokens

  compiled = jax.jit(jax.grad(loss))
  return lambda params, example: jax.device_get(compiled(params, example))


@pytest.fixture(scope="module")
def pull_of(model):
  """Gradient of each row's loss for its prefix, of one client's batch."""

  def of_row(logits, targets, mask):
    sums = token_cross_entropy(logits[None], targets[None], mask[None], OPTIM.label_smoothing)
    return sums.nats / sums.tokens

  def total(made, batch):
    read = model.captioner.encode_prefix(
      model.frozen, made, batch.instruction, batch.instruction_mask
    )
    logits = model.captioner.target_logits(model.frozen, *read, batch.targets)
    return jax.vmap(of_row)(logits, batch.targets, batch.targets_mask).sum()

  grad = jax.jit(jax.grad(total))
  return lambda batch: grad(soft_prefix(model.captioner.prompt(model.params, batch)), batch)


def norm(tree) -> float:
  """In NumPy: JAX would compile a program for each leaf."""
  return float(np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree))))


def distance(one, other):
  return norm(jax.tree.map(lambda a, b: np.asarray(a) - b, one, other))


@pytest.fixture(scope="module")
def sums(model, one_device):
  """`clipped_sums` of one client's batch, compiled once."""

  @jax.jit
  def compiled(batch, pull):
    one = jax.tree.map(lambda leaf: leaf[None], (model.params, batch, pull))
    return clipped_sums(model.captioner, CLIP, STEP, *one, one_device)

  return lambda batch, pull: in_units(jax.device_get(of(compiled(batch, pull), 0)))


@pytest.mark.parametrize("scale", [1e-3, 100.0])
def test_gradients_equal_clipped_gradients_of_batches_of_one(model, sums, gradient, pull_of, scale):
  batch = make_batch(0, 8)
  found = sums(batch, scale * pull_of(batch))
  each = [gradient(model.params, of(batch, row)) for row in range(8)]
  norms = [scale * norm(grads) for grads in each]
  assert max(norms) < CLIP if scale < 1 else min(norms) > CLIP
  shares = [scale * min(1.0, CLIP / size) for size in norms]
  expected = jax.tree.map(
    lambda *leaves: sum(s * leaf for s, leaf in zip(shares, leaves, strict=True)), *each
  )
  assert distance(found, expected) <= 2e-5 * norm(expected)


def extreme(batch, pull, kind):
  """The batch with an example that tries to be heard."""
  if kind == "features":
    return batch._replace(tokens=batch.tokens.at[3].multiply(1e6)), pull
  if kind == "overflow":
    return batch._replace(tokens=batch.tokens.at[3].set(3e38)), pull
  if kind == "nan":
    return batch._replace(tokens=batch.tokens.at[3].set(jnp.nan)), pull
  return batch, pull.at[3].multiply({"loss": 1e9, "infinite": jnp.inf}[kind])


@pytest.mark.parametrize("kind", ["features", "overflow", "nan", "loss", "infinite"])
def test_no_example_moves_the_sum_by_more_than_the_bound(sums, pull_of, kind):
  batch = make_batch(1, 8)
  pull = pull_of(batch)
  without = sums(batch, pull.at[3].set(0.0))
  moved = distance(sums(*extreme(batch, pull, kind)), without)
  assert moved <= CLIP
  if kind in ("features", "loss"):  # it is held at the bound, and not merely dropped
    assert moved == pytest.approx(CLIP, rel=1e-3)


def test_gradients_do_not_depend_on_the_chunk_size_or_on_devices(
  model, sums, pull_of, four_devices, monkeypatch
):
  batch = make_batch(0, 8)
  pull = pull_of(batch)
  whole = sums(batch, pull)
  monkeypatch.setattr(
    "afspl_jax.federation.privacy.dp_sgd_step._FLOATS",
    4 * sum(map(np.size, jax.tree.leaves(whole))),
  )
  one = jax.tree.map(lambda leaf: leaf[None], (model.params, batch, pull))

  def few_at_a_time(params, batch, pull):
    return clipped_sums(model.captioner, CLIP, STEP, params, batch, pull, four_devices)

  jaxpr = jax.make_jaxpr(few_at_a_time)(*one)
  (scan,) = [each for each in jaxpr.eqns if each.primitive.name == "scan"]
  assert scan.params["length"] == 2
  few = in_units(jax.device_get(of(jax.jit(few_at_a_time)(*one), 0)))
  assert_close(few, whole, 1e-5)


def test_a_step_uses_the_noisy_mean_of_clipped_gradients(model, gradient, one_device):
  batches, noise = make_batch(0, STEPS, CLIENTS, ROWS), noise_of(model, 0.01)
  batches = batches._replace(targets_mask=batches.targets_mask.at[:, :, 6:].set(False))
  trained, _ = train(model, one_device, batches, noise, (5, 4, 3))
  params, optimizer, schedule = model.params, make_optimizer(OPTIM), make_schedule(OPTIM, 10)
  opt_state, update = optimizer.init(params), jax.jit(optimizer.update)
  penalty = jax.jit(jax.grad(pull))
  for step in range(STEPS):
    batch, added = of(of(batches, step), 1), in_units(of(of(noise, step), 1))
    each = [gradient(params, of(batch, row)) for row in range(6)]
    shares = [min(1.0, CLIP / norm(grads)) for grads in each]
    total = added
    for share, grads in zip(shares, each, strict=True):
      total = jax.tree.map(lambda a, b, share=share: a + share * b, total, grads)
    more = jax.device_get(penalty(params, model.params))
    grads = jax.tree.map(lambda total, more: total / 4 + more, total, more)
    updates, opt_state = jax.device_get(update(grads, opt_state, params))
    rate = float(schedule(2 + step))
    params = jax.tree.map(lambda p, u, rate=rate: np.asarray(p) + rate * u, params, updates)
  assert_close(of(trained, 1), params, 2e-5)


def test_a_cohort_trains_as_each_of_its_clients_would_alone(model, one_device):
  batches, noise = make_batch(0, STEPS, CLIENTS, ROWS), noise_of(model)
  expected = np.array([8, 5, 3])
  together, metrics = train(model, one_device, batches, noise, expected)
  assert metrics.finite.all()
  for client in range(CLIENTS):
    copies = [client] * CLIENTS  # in place of the others: one program does for both
    mine = of((batches, noise), copies, 1)
    alone, _ = train(model, one_device, *mine, expected[copies])
    assert_close(of(alone, 0), of(together, client), 1e-5)


def test_rows_that_fill_up_a_batch_and_examples_that_are_not_finite_add_nothing(model, one_device):
  batches = make_batch(2, STEPS, CLIENTS, ROWS)
  cut = batches._replace(targets_mask=batches.targets_mask.at[:, :, 9:].set(False))
  junk = cut._replace(tokens=cut.tokens.at[:, :, 9:].multiply(-3), personal=~cut.personal)
  junk = junk._replace(personal=junk.personal.at[:, :, :9].set(cut.personal[:, :, :9]))
  broken = batches._replace(
    targets_mask=batches.targets_mask.at[:, :, 10:].set(False),
    tokens=batches.tokens.at[:, :, 9].set(jnp.nan),
  )
  silence = noise_of(model, 0.0)
  one, _ = train(model, one_device, cut, silence)
  for other in (junk, broken):
    trained, metrics = train(model, one_device, other, silence)
    assert metrics.finite.all()
    assert_close(trained, one, 1e-6)


def test_an_empty_batch_gives_only_noise(model, one_device):
  batches = make_batch(0, STEPS, CLIENTS, ROWS)
  empty = batches._replace(targets_mask=jnp.zeros_like(batches.targets_mask))
  penalty = jax.device_get(jax.jit(jax.grad(pull))(model.params, model.params))
  noise, expected = noise_of(model), (8, 4, 2)
  _, metrics = train(model, one_device, empty, noise, expected)
  size = sum(leaf.size for leaf in jax.tree.leaves(model.params))
  for client, by in enumerate(expected):
    added = in_units(of(of(noise, 0), client))
    # Of `size` normal numbers the norm is within 5 of its own standard deviations, or 1e-6 off.
    assert norm(added) == pytest.approx(2.0 * 0.5 * size**0.5, rel=5 / (2 * size) ** 0.5)
    grads = jax.tree.map(lambda a, b, by=by: a / by + b, added, penalty)
    assert metrics.grad_norm[0, client] == pytest.approx(norm(grads), rel=1e-4)
  _, metrics = train(model, one_device, empty, noise_of(model, 0.0))
  alone = norm(penalty)
  np.testing.assert_allclose(metrics.grad_norm[0], alone, rtol=1e-5)


def told_apart(model, mesh, std, others):
  """AUC of the loss as a sign of having been trained on, of each client's 16 examples by heart."""
  examples = make_batch(3, 1, CLIENTS, ROWS)
  batches = jax.tree.map(lambda x: jnp.repeat(x, STEPS, axis=0), examples)
  params = starts(model)
  for seed in range(25):
    params, _ = train(model, mesh, batches, noise_of(model, std, seed), params=params)

  @jax.jit
  def losses(params, batch):
    encoded = model.captioner.encode(params, model.frozen, batch)
    logits = model.captioner.logits(model.frozen, encoded, batch.targets)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
    mask = batch.targets_mask
    return jnp.sum(nats * mask, axis=1) / jnp.sum(mask, axis=1)

  seen = [losses(of(params, i), of(of(examples, 0), i)) for i in range(CLIENTS)]
  unseen = [losses(of(params, i), others) for i in range(CLIENTS)]
  return success(-np.concatenate(seen), -np.concatenate(unseen)).auc


def test_training_examples_can_be_identified_only_without_noise(model, one_device):
  others = make_batch(4, 100)
  assert told_apart(model, one_device, 0.0, others) > 0.85
  # Under noise guessing remains: 0.5, with a standard deviation below 0.05.
  assert told_apart(model, one_device, CLIP * NOISE, others) < 0.7


@pytest.mark.parametrize("step", [STEP, 1e-3])
def test_an_example_moves_the_integers_by_no_more_than_the_bound(model, pull_of, one_device, step):
  """Exactly, in integers; also on a coarse grid, where rounding to the nearest would be longer."""
  batch = make_batch(1, 8)
  pull = 1e6 * pull_of(batch)
  compiled = jax.jit(lambda *one: clipped_sums(model.captioner, CLIP, step, *one, one_device))
  lift = lambda *trees: jax.tree.map(lambda leaf: leaf[None], trees)  # noqa: E731
  everyone = jax.device_get(compiled(*lift(model.params, batch, pull)))
  others = jax.device_get(compiled(*lift(model.params, batch, pull.at[3].set(0.0))))
  moved = jax.tree.map(lambda a, b: a.astype(np.int64) - b, everyone, others)
  squares = sum(int(np.sum(leaf**2)) for leaf in jax.tree.leaves(moved))
  assert {leaf.dtype for leaf in jax.tree.leaves(everyone)} == {np.dtype(np.int32)}
  assert 0.5 * (CLIP / step) ** 2 < squares <= (CLIP / step) ** 2


def test_a_batch_that_the_devices_cannot_share_is_rejected(model, four_devices):
  with pytest.raises(UserError, match=r"optim.batch_size: expected a multiple of the 4 devices"):
    make_private_training(model.captioner, Optim(batch_size=6), Privacy(), 1, pull, four_devices)
