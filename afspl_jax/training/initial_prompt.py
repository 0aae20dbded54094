"""The local prompt of a client before its first local training."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from afspl_jax.models.captioner import Captioner
from afspl_jax.training.mesh import replicated, row_sharded
from afspl_jax.types import Batch, Params


def make_initial_prompt(captioner: Captioner, mesh: Mesh) -> Callable[[Params, Batch], Array]:
  """Compiles `(params, batch) -> prompt [p d]`.

  The prompt is the mean of the global prompts that the pool gives for the client's examples. It
  needs no training.
  """

  def matching(params: Params, batch: Batch) -> Float[Array, "p d"]:
    rows = batch.targets_mask.any(axis=-1).astype(jnp.float32)
    prompts = captioner.prompt(params, batch).pool.prompt
    return jnp.einsum("b,bpd->pd", rows, prompts) / jnp.maximum(rows.sum(), 1.0)

  everywhere, rows = replicated(mesh), row_sharded(mesh)
  return jax.jit(matching, in_shardings=(everywhere, rows), out_shardings=everywhere)
