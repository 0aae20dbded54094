"""Sparse uplink: which rows of its update a client sends, and what happens to the others.

A *row* is the unit that is sent or not: `leaf[i, ..., :]` of a leaf with two or more axes (of a
prompt leaf `[m p d]`: one prompt token), and a leaf with fewer axes as a whole. The *mask* of a
leaf marks some of its rows; it has the leaf's shape with 1 for the last axis, so that it
broadcasts.

Rows that are not sent are kept (error feedback). Stich et al. 2018, "Sparsified SGD with Memory",
algorithm 1, and Karimireddy et al. 2019, "Error Feedback Fixes SignSGD", algorithm 1, add them to
the next update ("add"). Both papers send gradients. A client that trains many steps from the global
params learns again what its residual already has, and the sum overshoots. So by default local
training starts from the global params plus the residual ("resume").

With `weighing="cohort"` a row is averaged over all replies, and counts as unchanged where it was
not sent: every update reaches the server once, with the client's own weight. With `"coverage"` a
row is averaged over the clients that sent it: it moves faster, and these clients decide for the
others.
"""

import math
from collections.abc import Collection
from fractions import Fraction
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool

from afspl_jax.config import experiment as settings
from afspl_jax.storage.pytrees import zeros_like
from afspl_jax.types import Params

DrawKey = tuple[int, int]  # the experiment's seed, and the round
SAME_ROWS = ("shared", "dense")  # with these, all clients send the same rows

_STREAM = 0x10C  # separates these random numbers from others with the same seed


class Sent(NamedTuple):
  """What a client sends in a round, and what it keeps."""

  params: Params  # as the server rebuilds them: the global params where a row was not sent
  masks: Params  # the rows that were sent
  residual: Params  # what the client keeps for its next round


def mask_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
  """The shape of the mask of a leaf with this shape."""
  return (*shape[:-1], 1) if shape else ()


def everywhere(params: Params) -> Params:
  """The masks of all rows."""
  return jax.tree.map(lambda leaf: np.ones(mask_shape(leaf.shape), np.bool_), params)


def without(masks: Params, fixed: Collection[str]) -> Params:
  """The masks, but of no row of the leaves with these names."""

  def of_leaf(path, mask):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return np.zeros_like(mask) if name in fixed else mask

  return jax.tree_util.tree_map_with_path(of_leaf, masks)


def added(new: Params, old: Params) -> Params:
  """`new - old`, in float64."""
  return jax.tree.map(lambda a, b: np.subtract(a, b, dtype=np.float64), new, old)


def where_sent(new: Params, old: Params, sent: Params) -> Params:
  """`new`, in the dtypes of `old`, in rows that were sent; `old`, bit for bit, in the others."""
  pick = lambda a, b, mask: np.where(mask, a.astype(b.dtype), b)  # noqa: E731
  return jax.tree.map(pick, new, old, sent)


def moved(params: Params, update: Params, masks: Params, by: int = 1) -> Params:
  """The params plus an update divided by a number, in the rows of the masks.

  Args:
    params: pytree of float arrays.
    update: float64: an update, or a sum of several.
    masks: its rows.
    by: how many updates were summed.
  """
  return where_sent(jax.tree.map(lambda a, b: a + b / by, params, update), params, masks)


def shared_rows(params: Params, config: settings.Uplink, draw_key: DrawKey) -> Params:
  """The masks of the rows that all clients send in a round; they do not depend on data.

  With "dense" all; with "shared" the share `config.ratio` of each leaf's rows, rounded up,
  chosen at random.
  The choice reveals nothing about a client, and clients' updates can be summed row by row.

  Args:
    params: pytree of anything with a shape.
    config: the rule.
    draw_key: seed and round, which choose the rows.
  """
  if config.select == "dense":
    return everywhere(params)
  rng = np.random.default_rng((_STREAM, *draw_key))

  def of_leaf(leaf):
    mask = np.zeros(mask_shape(leaf.shape), np.bool_)
    mask.flat[rng.choice(mask.size, _count(config.ratio, mask.size), replace=False)] = True
    return mask

  return jax.tree.map(of_leaf, params)


def choose(update: Params, config: settings.Uplink, draw_key: DrawKey = (0, 0)) -> Params:
  """The masks of the rows to send.

  The energy of a row is its sum of squares, in float64; of equal rows the first one wins.
  "energy" sends of each leaf the fewest rows that reach the share `config.energy` of the leaf's
  energy, and never a row of zeros; "ratio" the share `config.ratio` of its rows, rounded up;
  "shared" and "dense" those of `shared_rows`.

  Args:
    update: pytree of float arrays: what local training added to the global params.
    config: the rule.
    draw_key: for "shared".

  Returns:
    A tree of masks like `update`.

  Raises:
    FloatingPointError: "energy" or "ratio" of an update that is not finite.
  """
  if config.select in SAME_ROWS:
    return shared_rows(update, config, draw_key)
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: _choose_rows(path, leaf, config), update
  )


def start_params(global_params: Params, residual: Params, config: settings.Uplink) -> Params:
  """The params from which a client's local training starts."""
  return _plus(global_params, residual) if config.error_feedback == "resume" else global_params


def compress(
  params: Params,
  global_params: Params,
  residual: Params,
  config: settings.Uplink,
  draw_key: DrawKey = (0, 0),
  fixed: Collection[str] = (),
) -> Sent:
  """What a client sends after local training, and what it keeps.

  Args:
    params: result of local training from `start_params`; float arrays, as in the other two trees.
    global_params: what the server sent.
    residual: what earlier rounds did not send; zeros at first.
    config: the rule.
    draw_key: for "shared".
    fixed: names of leaves that local training left as they are, and of which no row is sent.

  Returns:
    What is sent of `params`, or with "add" of `params + residual`. With "dense" and no residual it
    is `params`, bit for bit.

  Raises:
    FloatingPointError: "energy" or "ratio" of an update that is not finite.
  """
  params, global_params, residual = jax.device_get((params, global_params, residual))
  offered = _plus(params, residual) if config.error_feedback == "add" else params
  update = jax.tree.map(np.subtract, offered, global_params)
  masks = without(choose(update, config, draw_key), fixed)
  sent = jax.tree.map(np.where, masks, offered, global_params)
  kept = zeros_like(params)
  if config.error_feedback != "none":
    kept = jax.tree.map(np.where, masks, kept, update)
  return Sent(sent, masks, kept)


def _plus(params: Params, residual: Params) -> Params:
  # Where there is no residual nothing is added, because -0.0 + 0.0 is not -0.0 bit for bit.
  return jax.tree.map(lambda p, r: np.where(r == 0, p, p + r), params, residual)


def _choose_rows(path, update, config: settings.Uplink) -> Bool[np.ndarray, "..."]:
  """The mask of one leaf."""
  squares = np.square(np.asarray(update, np.float64))
  energy = squares.sum(axis=-1 if squares.ndim else None, keepdims=True)
  order = np.argsort(-energy, axis=None, kind="stable")
  # Unsent energy if none, one, two, ... of the last rows were left out: small numbers are summed
  # first, so that the share 1.0 leaves out no row but those of zeros.
  unsent = np.cumsum(energy.ravel()[order[::-1]])
  total = unsent[-1] if unsent.size else 0.0
  if not np.isfinite(total):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    raise FloatingPointError(f"{name}: the update is not finite")
  if config.select == "ratio":
    count = _count(config.ratio, energy.size)
  else:
    spare = total - config.energy * total
    count = energy.size - int(np.searchsorted(unsent, spare, side="right"))
  mask = np.zeros(energy.shape, np.bool_)
  mask.flat[order[:count]] = True
  return mask


def _count(ratio: float, rows: int) -> int:
  # Decimal: in floats 7 % of 100 rows are 7.000000000000001, and would round up to 8.
  return math.ceil(Fraction(str(ratio)) * rows)
