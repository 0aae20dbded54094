"""The rows of a cohort's clients as one batch: the frozen networks need not know the clients."""

from typing import Any

import jax
from jaxtyping import Array


def merge_clients(tree: Any) -> Any:
  """Turns arrays `[c b ...]` into rows `[b*c ...]`.

  The sharded axis `b` stays outermost, so no row moves to another device.
  """
  return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), tree)


def split_clients(rows: Array, clients: int) -> Array:
  """The inverse of `merge_clients`, for one array."""
  return rows.reshape(-1, clients, *rows.shape[1:]).swapaxes(0, 1)
