"""Rounds whose first steps train the local leaves alone, and whose others the shared ones alone."""

import jax
import jax.numpy as jnp
import numpy as np

from afspl_jax.config.experiment import Optim
from afspl_jax.storage.pytrees import named_leaves
from afspl_jax.training.optimizer import make_optimizer
from afspl_jax.training.train_step import make_local_training
from tests.conftest import make_batch
from tests.training.cohorts import assert_close, make_optim
from tests.training.test_train_step import alone, no_penalty, of_the_only

LOCAL = ("local/*", "mapper/place")
RATES = {"local/prompt": 0.3, "mapper/place": 0.2, "mapper/kernel": 0.1, "fusion/score": 0.05}


def nested(flat):
  out = {}
  for name, value in flat.items():
    group, leaf = name.split("/")
    out.setdefault(group, {})[leaf] = jnp.asarray(value, jnp.float32)
  return out


def adam(params, gradients, names, b1=0.9, b2=0.99, clip=1.0):
  """Kingma and Ba 2015, Algorithm 1, of some leaves, after clipping by their norm alone."""
  moments = {name: (0.0, 0.0) for name in names}
  for t, grads in enumerate(gradients, start=1):
    norm = np.sqrt(sum(np.sum(grads[name] ** 2) for name in names))
    for name in names:
      g = grads[name] * min(1.0, clip / norm)
      m, v = moments[name]
      m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
      moments[name] = m, v
      step = RATES[name] * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + 1e-8)
      params = params | {name: params[name] - step}
  return params


def test_each_part_moves_by_an_adam_of_its_own_while_the_other_is_fixed():
  """Collins et al. 2021 (FedRep), Algorithm 1: the head's steps, then those of the rest."""
  rng = np.random.default_rng(0)
  draw = lambda: {name: rng.normal(size=(3, 2)) for name in RATES}  # noqa: E731
  params, gradients = draw(), [draw() for _ in range(5)]
  head = ("local/prompt", "mapper/place")
  rest = tuple(name for name in RATES if name not in head)
  expected = adam(adam(params, gradients[:2], head), gradients[2:], rest)
  rates = {
    "weight_decay": 0.0,
    "local_lr": 0.3,
    "prompt_lr": 0.2,
    "mapper_lr": 0.1,
    "fusion_lr": 0.05,
  }
  optimizer = make_optimizer(Optim(local_steps=5, local_only=2, **rates), (), LOCAL)
  found, state = nested(params), optimizer.init(nested(params))
  for place, grads in enumerate(gradients):
    updates, state = jax.jit(optimizer.update)(nested(grads), state, found)
    still = rest if place < 2 else head
    assert all((named_leaves(updates)[name] == 0).all() for name in still)
    found = jax.tree.map(jnp.add, found, updates)
  for name, leaf in named_leaves(found).items():
    np.testing.assert_allclose(leaf, expected[name], rtol=1e-5, atol=1e-6)


def test_the_shared_leaves_take_their_steps_from_the_local_leaves_that_were_trained(
  model, one_device
):
  def trained(local_only, start, batches):
    steps = len(batches.targets)
    optim = make_optim(local_steps=steps, local_only=local_only, schedule="constant", clip_norm=1e9)
    program = make_local_training(
      model.captioner, optim, 10, no_penalty, one_device, local=("local/*",)
    )
    params, first_step = jax.tree.map(jnp.copy, alone(start)), jnp.asarray(40, jnp.int32)
    return of_the_only(
      program(params, model.frozen, alone(start), alone(batches, 1), first_step)[0]
    )

  batches = make_batch(0, 2, 8)
  first, second = (jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], batches) for i in range(2))
  local = trained(1, model.params, first)
  assert not np.allclose(local["local"]["prompt"], model.params["local"]["prompt"])
  assert_close(local | {"local": {}}, model.params | {"local": {}}, tolerance=0)
  both, found = trained(0, local, second), trained(1, model.params, batches)
  assert_close(found["local"], local["local"])
  assert_close(found | {"local": {}}, both | {"local": {}})
