"""Leaves that nobody trains: keys and query that the server set from sites' images."""

import jax
import jax.numpy as jnp

from afspl_jax.config.experiment import Optim
from afspl_jax.models.prompter.pool import balance_loss
from afspl_jax.models.prompter.site_prompts import ROUTING_LEAVES
from afspl_jax.storage.pytrees import named_leaves
from afspl_jax.training.optimizer import make_optimizer
from tests.conftest import make_batch, make_model


def test_leaves_that_are_fixed_have_neither_gradient_nor_state_nor_step():
  model = make_model(sites=3)
  sites = model.params["sites"]
  sites["keys"], sites["query"]["bias"] = jnp.eye(3), jnp.ones(3)
  assert model.captioner.fixed_leaves == ROUTING_LEAVES
  batch = make_batch(0, 8)

  def loss(params):
    prompted = model.captioner.prompt(params, batch)
    return jnp.square(prompted.prompt).sum() + balance_loss(prompted.pool, jnp.ones(8))

  grads = named_leaves(jax.grad(loss)(model.params))
  assert {name for name in grads if name.startswith("sites/") and not grads[name].any()} == {
    *ROUTING_LEAVES
  }
  optimizer = make_optimizer(Optim(weight_decay=0.1), ROUTING_LEAVES)
  ones = jax.tree.map(jnp.ones_like, model.params)
  state = optimizer.init(model.params)
  updates = named_leaves(jax.jit(optimizer.update)(ones, state, model.params)[0])
  assert {name for name, leaf in updates.items() if not leaf.any()} == {*ROUTING_LEAVES}
  leaves = named_leaves(model.params)
  moved = sum(leaf.size for name, leaf in leaves.items() if name not in ROUTING_LEAVES)
  assert sum(x.size for x in jax.tree.leaves(state) if x.ndim) == 2 * moved
