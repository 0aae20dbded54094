"""Replies for the tests of strategies, and params as one long vector."""

import jax
import ml_dtypes
import numpy as np

from afspl_jax.federation.contracts import Update
from afspl_jax.federation.protocol import uplink

SITES = 12  # in the federation; fewer reply
SHAPES = {"pool": (2, 4, 3), "mapper": {"kernel": (5, 2), "bias": (3,)}, "scale": ()}


def draw(rng, half=True):
  """Random params with a scalar; `half` adds a leaf of bfloat16."""
  is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
  leaf = lambda shape: np.asarray(rng.normal(size=shape), np.float32)  # noqa: E731
  params = jax.tree.map(leaf, SHAPES, is_leaf=is_shape)
  return params | ({"half": leaf((4, 2)).astype(ml_dtypes.bfloat16)} if half else {})


def reply(site, params, num_examples=1, masks=None, control=None, **metrics):
  masks = uplink.everywhere(params) if masks is None else masks
  control = jax.tree.map(np.zeros_like, params) if control is None else control
  return Update(site, params, masks, num_examples, metrics, control)


def replies_near(params, rng, number=7, spread=0.1):
  """All rows sent, sizes that differ, a loss that differs, and a control."""

  def move(leaf):
    return np.asarray(leaf + spread * rng.normal(size=leaf.shape)).astype(leaf.dtype)

  def anything(leaf):
    return np.asarray(rng.normal(size=leaf.shape)).astype(leaf.dtype)

  return [
    reply(
      f"s{i}",
      jax.tree.map(move, params),
      int(rng.integers(1, 100)),
      control=jax.tree.map(anything, params),
      first_loss=float(rng.uniform(0.1, 3)),
    )
    for i in range(number)
  ]


def sparse_replies(params, rng, number=7):
  """A random half of the rows sent; the second row of "kernel" and the scalar by nobody."""
  out = []
  for dense in replies_near(params, rng, number):
    masks = jax.tree.map(lambda mask: np.asarray(rng.random(mask.shape) < 0.5), dense.masks)
    masks["mapper"]["kernel"][1] = False
    masks["scale"] = np.zeros((), np.bool_)
    sent = jax.tree.map(np.where, masks, dense.params, params)
    out.append(dense._replace(params=sent, masks=masks))
  return out


def unsent(params, replies):
  """Per leaf, of the leaf's shape: where no reply has the row."""
  masks = [reply.masks for reply in replies]
  nobody = jax.tree.map(lambda *leaves: ~np.logical_or.reduce(leaves), *masks)
  return jax.tree.map(lambda mask, leaf: np.broadcast_to(mask, leaf.shape), nobody, params)


def vector(params):
  """All leaves behind each other, float64."""
  return np.concatenate([leaf.astype(np.float64).ravel() for leaf in jax.tree.leaves(params)])


def like(params, flat):
  """The inverse of `vector`, in the leaves' shapes and dtypes."""
  leaves, tree = jax.tree.flatten(params)
  parts = np.split(flat, np.cumsum([leaf.size for leaf in leaves])[:-1])
  cast = [p.reshape(x.shape).astype(x.dtype) for p, x in zip(parts, leaves, strict=True)]
  return jax.tree.unflatten(tree, cast)


def bits(tree):
  return b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree))


def assert_close(a, b, tolerance=1e-6):
  def close(x, y):
    assert x.shape == y.shape and x.dtype == y.dtype
    x, y = x.astype(np.float64), y.astype(np.float64)
    np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)

  jax.tree.map(close, a, b)
