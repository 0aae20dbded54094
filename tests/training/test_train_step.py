import dataclasses
import functools
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jax.extend.core import jaxprs_in_params

from afspl_jax.config.experiment import Optim
from afspl_jax.training.eval_step import make_eval_step
from afspl_jax.training.initial_prompt import make_initial_prompt
from afspl_jax.training.losses import contrastive, token_cross_entropy
from afspl_jax.training.mesh import make_mesh, replicate
from afspl_jax.training.optimizer import make_optimizer, make_schedule
from afspl_jax.training.train_step import TrainState, TrainStep, make_local_training
from tests.conftest import make_batch, make_model

# Rates of the test's own, whatever the defaults: Adam turns the rounding of a gradient into a
# difference of the parameters in proportion to the rate.
OPTIM = Optim(
  batch_size=8, local_steps=3, prompt_lr=3e-2, key_lr=1e-2, fusion_lr=1e-2, mapper_lr=3e-3
)


def no_penalty(params, global_params):
  return jnp.zeros(())


def alone(tree, axis=0):
  """A cohort of one."""
  return jax.tree.map(lambda x: np.expand_dims(x, axis), tree)


def of_the_only(tree, axis=0):
  return jax.tree.map(lambda x: np.asarray(x).squeeze(axis), tree)


@functools.cache  # a program takes seconds to compile
def program_of(captioner, optim, penalty, mesh):
  return make_local_training(captioner, Optim(*optim), 10, penalty, mesh)


def train(model, mesh, batches, optim=OPTIM, penalty=no_penalty):
  program = program_of(model.captioner, dataclasses.astuple(optim), penalty, mesh)
  params = replicate(alone(model.params), mesh)
  frozen, start = replicate(model.frozen, mesh), alone(model.params)
  out = program(params, frozen, start, alone(batches, 1), jnp.asarray(0, jnp.int32))
  return of_the_only(out[0]), of_the_only(out[1], 1)


def start_of(model):
  params = alone(model.params)
  return TrainState(params, jax.vmap(make_optimizer(OPTIM).init)(params), jnp.asarray(0, jnp.int32))


def products(jaxpr):
  """Shapes of all matrix products, in whatever loop or branch."""
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      yield from (tuple(out.aval.shape) for out in equation.outvars)
    for inner in jaxprs_in_params(equation.params):
      yield from products(inner)


def test_one_and_four_devices_give_the_same_numbers(model, one_device, four_devices):
  batches = make_batch(0, 3, 8)
  one, one_metrics = train(model, one_device, batches)
  four, four_metrics = train(model, four_devices, batches)
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(four), strict=True):
    assert np.linalg.norm(a - b) <= 1e-6 * max(1.0, float(np.linalg.norm(b)))
  np.testing.assert_allclose(one_metrics.loss, four_metrics.loss, rtol=1e-6)
  np.testing.assert_allclose(one_metrics.grad_norm, four_metrics.grad_norm, rtol=1e-5)


def test_the_scan_equals_single_steps(model, one_device):
  batches = make_batch(0, 3, 8)
  scanned, metrics = train(model, one_device, batches)
  step = jax.jit(TrainStep(model.captioner, OPTIM, 10, no_penalty, one_device))
  state = start_of(model)
  for i in range(3):
    batch = jax.tree.map(lambda x, i=i: x[i], alone(batches, 1))
    state, single = step(state, model.frozen, alone(model.params), batch)
    np.testing.assert_allclose(single.loss[0], metrics.loss[i], rtol=1e-5)
  for a, b in zip(jax.tree.leaves(scanned), jax.tree.leaves(state.params), strict=True):
    np.testing.assert_allclose(a, b[0], atol=1e-5)


def test_frozen_leaves_are_bit_identical_after_training_and_the_params_are_not(model, one_device):
  before = jax.tree.map(lambda x: np.array(x), model.frozen)
  program = make_local_training(model.captioner, OPTIM, 10, no_penalty, one_device)
  frozen, params = replicate(model.frozen, one_device), replicate(alone(model.params), one_device)
  batches, first = alone(make_batch(0, 3, 8), 1), jnp.asarray(0, jnp.int32)
  trained, _ = program(params, frozen, alone(model.params), batches, first)
  for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(frozen), strict=True):
    np.testing.assert_array_equal(a, b)
  unmoved = [
    jax.tree_util.keystr(path)
    for (path, a), b in zip(
      jax.tree_util.tree_leaves_with_path(model.params), jax.tree.leaves(trained), strict=True
    )
    if np.array_equal(a, b[0])
  ]
  assert unmoved == []


def test_the_optimizer_state_covers_only_the_prompter(model):
  sizes = sum(x.size for x in jax.tree.leaves(model.params))
  state = make_optimizer(OPTIM).init(model.params)
  arrays = sum(x.size for x in jax.tree.leaves(state) if x.ndim)
  assert arrays == 2 * sizes  # Adam's two moments of every trainable leaf, and nothing else


def test_no_gradient_of_a_frozen_leaf_is_ever_computed(model, one_device):
  step = TrainStep(model.captioner, OPTIM, 10, no_penalty, one_device)
  batch = alone(make_batch(0, 8))
  jaxpr = jax.make_jaxpr(step)(start_of(model), model.frozen, alone(model.params), batch)
  # The head's gradient alone would be a [d n] product; only the prompter has outputs like that.
  head, made = model.frozen["head"].shape, set(products(jaxpr.jaxpr))
  assert (8, 7, model.frozen["head"].shape[1]) in made  # the logits: it looks where T5 is
  assert head not in made and head[::-1] not in made


def test_the_loss_is_the_mean_over_tokens_of_torch(model):
  batch = make_batch(1, 8)
  logits = model.logits(model.encode(model.params, batch), batch.targets)
  labels = np.where(batch.targets_mask, batch.targets, -100)
  for smoothing in (0.0, 0.1):
    ours = token_cross_entropy(logits, batch.targets, batch.targets_mask, smoothing)
    theirs = torch.nn.functional.cross_entropy(
      torch.tensor(np.asarray(logits)).flatten(0, 1),
      torch.tensor(labels).long().flatten(),
      label_smoothing=smoothing,
    )
    np.testing.assert_allclose(float(ours.nats / ours.tokens), float(theirs), rtol=1e-5)


def test_rows_that_fill_up_a_batch_change_nothing(model, one_device):
  full = make_batch(2, 2, 8)
  cut = full._replace(targets_mask=full.targets_mask.at[:, 5:].set(False))
  junk = cut._replace(
    targets=cut.targets.at[:, 5:].set(39 - cut.targets[:, 5:]),
    tokens=cut.tokens.at[:, 5:].multiply(-3),
    image=cut.image.at[:, 5:].multiply(-1),
  )
  one, m1 = train(model, one_device, cut)
  other, m2 = train(model, one_device, junk)
  np.testing.assert_allclose(m1.loss, m2.loss, rtol=1e-6)
  np.testing.assert_allclose(m1.balance, m2.balance, rtol=1e-6)
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_different_data_compiles_no_second_program(model, one_device):
  program = make_local_training(model.captioner, OPTIM, 10, no_penalty, one_device)
  evaluate = make_eval_step(model.captioner, one_device)
  frozen = replicate(model.frozen, one_device)
  for round in range(3):
    evaluate(model.params, frozen, make_batch(round, 8))
    params, batches = replicate(alone(model.params), one_device), make_batch(round, 3, 8)
    first = jnp.asarray(3 * round, jnp.int32)
    program(params, frozen, alone(model.params), alone(batches, 1), first)
  assert program._cache_size() == 1
  assert evaluate._cache_size() == 1


def test_a_step_with_a_nonfinite_gradient_is_reported_and_changes_nothing(model, one_device):
  batches = make_batch(0, 3, 8)
  batches = batches._replace(tokens=batches.tokens.at[1].set(jnp.nan))
  trained, metrics = train(model, one_device, batches)
  np.testing.assert_array_equal(metrics.finite, [True, False, True])
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(trained))
  batches = batches._replace(tokens=jnp.full_like(batches.tokens, jnp.nan))
  untouched, metrics = train(model, one_device, batches)
  assert not metrics.finite.any()
  for a, b in zip(jax.tree.leaves(untouched), jax.tree.leaves(model.params), strict=True):
    np.testing.assert_array_equal(a, b)


def test_the_penalty_of_a_strategy_reaches_the_gradient(model, one_device):
  def pull(params, global_params):
    return 1e4 * sum(
      jnp.sum(jnp.square(a - b))
      for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(global_params), strict=True)
    )

  far = train(model, one_device, make_batch(0, 3, 8))[0]
  near = train(model, one_device, make_batch(0, 3, 8), penalty=pull)[0]

  @jax.jit
  def distance(params):
    return optax.tree.norm(jax.tree.map(jnp.subtract, params, model.params))

  moved = [distance(each) for each in (far, near)]
  assert moved[1] < 0.9 * moved[0]


CONTRAST = dataclasses.replace(OPTIM, contrast=1.0, contrast_warmup=2.0)


def test_the_contrastive_loss_has_gradient_into_the_prompter(one_device):
  model = make_model(contrast=True)
  batch = make_batch(0, 8)

  def loss(params):
    encoded = model.captioner.encode(params, model.frozen, batch)
    states = model.captioner.summarise(model.frozen, encoded.states, encoded.mask)
    return contrastive(model.captioner.project(params, states), batch.caption, 0.1)

  grads = jax.jit(jax.grad(loss))(model.params)
  for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if not name.startswith("fusion/hidden"):  # behind a layer that starts at zero
      assert np.abs(np.asarray(leaf)).max() > 0, name
  batches = make_batch(0, 3, 8)
  with_it, metrics = train(model, one_device, batches, CONTRAST)
  without, _ = train(model, one_device, batches)
  assert (metrics.contrast > 0).all()
  moved = np.abs(with_it["mapper"]["project"]["kernel"] - without["mapper"]["project"]["kernel"])
  assert moved.max() > 1e-5


def test_the_weight_of_the_contrastive_loss_grows_over_its_warmup(one_device):
  model = make_model(contrast=True)
  step, plain = (
    jax.jit(TrainStep(model.captioner, optim, 10, no_penalty, one_device))
    for optim in (CONTRAST, OPTIM)
  )
  batch, share = alone(make_batch(0, 8)), []
  for number in (0, 2, 5, 50):
    state = start_of(model)._replace(step=jnp.asarray(number, jnp.int32))
    norms = [
      each(state, model.frozen, alone(model.params), batch)[1].grad_norm.item()
      for each in (step, plain)
    ]
    share.append(norms[0] - norms[1])
  assert share[0] < share[1] < share[2] == share[3]  # 2 rounds of 3 steps: full from step 5 on


def test_every_leaf_has_a_learning_rate_of_its_group():
  model = make_model(contrast=True)
  rates = dict(prompt_lr=1e-1, local_lr=2e-1, key_lr=3e-1, fusion_lr=4e-1, mapper_lr=5e-1)
  optimizer = make_optimizer(Optim(**rates, clip_norm=1e9, weight_decay=0.0))
  ones = jax.tree.map(jnp.ones_like, model.params)
  updates, _ = jax.jit(optimizer.update)(ones, optimizer.init(model.params), model.params)
  found = {
    jax.tree_util.keystr(path, simple=True, separator="/"): -float(leaf.ravel()[0])
    for path, leaf in jax.tree_util.tree_leaves_with_path(updates)
  }
  expected = {
    "pool/prompts": 0.1,
    "visual_prompt": 0.1,
    "textual_prompt": 0.1,
    "mapper/place": 0.1,
    "local/prompt": 0.2,
    "pool/keys": 0.3,
    "pool/query/kernel": 0.3,
    "fusion/score/bias": 0.4,
    "local/contrast/kernel": 0.4,
    "mapper/project/kernel": 0.5,
  }
  for name, rate in expected.items():
    assert found[name] == pytest.approx(rate, rel=1e-3), name


def test_the_initial_prompt_is_the_mean_of_the_prompts_that_the_rows_select(one_device):
  model, batch = make_model(), make_batch(0, 8)
  batch = batch._replace(targets_mask=batch.targets_mask.at[6:].set(False))
  found = make_initial_prompt(model.captioner, one_device)(model.params, batch)
  pool = model.encode(model.params, batch).prompted.pool
  mixed = np.tensordot(np.asarray(pool.weights)[:6], np.asarray(model.params["pool"]["prompts"]), 1)
  np.testing.assert_allclose(found, mixed.mean(axis=0), atol=1e-5)


def test_schedule_warms_up_then_falls_to_its_final_fraction():
  optim = Optim(local_steps=4, warmup_rounds=2.0, final_lr=0.1)
  schedule = make_schedule(optim, rounds=10)
  values = [float(schedule(i)) for i in range(41)]
  assert 0 < values[0] < values[4] < values[8] == pytest.approx(1.0)
  assert values[-1] == pytest.approx(0.1)
  assert all(a >= b for a, b in pairwise(values[8:]))


def test_a_batch_that_the_devices_cannot_share_is_rejected(model, four_devices):
  with pytest.raises(ValueError, match=r"optim.batch_size: expected a multiple of the 4 devices"):
    make_local_training(model.captioner, Optim(batch_size=6), 1, no_penalty, four_devices)


def test_mesh_defaults_to_all_local_devices():
  assert make_mesh().shape == {"data": len(jax.local_devices())}
