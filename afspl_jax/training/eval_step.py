"""The evaluation step: the loss of given targets, data-parallel over the mesh."""

from collections.abc import Callable

import jax
from jax.sharding import Mesh

from afspl_jax.models.captioner import Captioner
from afspl_jax.training.losses import TokenLoss, token_cross_entropy
from afspl_jax.training.mesh import replicated, row_sharded
from afspl_jax.types import Batch, Params


def make_eval_step(
  captioner: Captioner, mesh: Mesh
) -> Callable[[Params, Params, Batch], TokenLoss]:
  """Compiles `(params, frozen, batch) -> TokenLoss`, without label smoothing."""

  def eval_step(params: Params, frozen: Params, batch: Batch) -> TokenLoss:
    encoded = captioner.encode(params, frozen, batch)
    logits = captioner.logits(frozen, encoded, batch.targets)
    return token_cross_entropy(logits, batch.targets, batch.targets_mask)

  everywhere, rows = replicated(mesh), row_sharded(mesh)
  return jax.jit(eval_step, in_shardings=(everywhere, everywhere, rows), out_shardings=everywhere)
