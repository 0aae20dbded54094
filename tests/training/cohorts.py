"""Cohorts of the tests' model: how they train, and one client's part of what comes out."""

import jax
import jax.numpy as jnp
import numpy as np

from afspl_jax.config.experiment import Optim


def make_optim(**fields):
  """Rates at which a few steps move every leaf."""
  rates = {"prompt_lr": 3e-2, "local_lr": 3e-2, "mapper_lr": 3e-3}
  return Optim(batch_size=8, label_smoothing=0.1, **rates, **fields)


def pull(params, global_params):
  """A penalty that is not zero where training starts."""
  leaves = zip(jax.tree.leaves(params), jax.tree.leaves(global_params), strict=True)
  return 1e-3 * sum(jnp.sum(jnp.square(a - 0.9 * b)) for a, b in leaves)


def of(tree, client, axis=0):
  return jax.tree.map(lambda x: np.take(np.asarray(x), client, axis=axis), tree)


def assert_close(one, other, tolerance=1e-6):
  """By leaf, not entry: Adam moves an entry of almost no gradient by its rounding."""
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True
  ):
    error = np.linalg.norm(np.asarray(a) - np.asarray(b))
    assert error <= tolerance * max(1.0, float(np.linalg.norm(b))), jax.tree_util.keystr(path)
