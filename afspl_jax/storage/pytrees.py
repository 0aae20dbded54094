"""Trees of arrays: their leaves by name, and trees of zeros like them."""

from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike


def named_leaves(tree: Any) -> dict[str, Any]:
  """The leaves by path, such as "pool/keys", in the order of the tree."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
  }


def zeros_like(tree: Any, dtype: DTypeLike | None = None) -> Any:
  """A tree of NumPy zeros like a tree of anything with shapes.

  Args:
    tree: arrays or their shapes.
    dtype: of the zeros; by default each leaf's own.
  """
  return jax.tree.map(lambda leaf: np.zeros(leaf.shape, dtype or leaf.dtype), tree)
