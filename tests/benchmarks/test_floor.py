"""Counted operations equal those of the programs; training needs twice a forward pass at most."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from afspl_jax.models.clip.clip import Clip
from afspl_jax.models.huggingface.weights import outline
from afspl_jax.models.t5.t5 import T5, shift_right
from benchmarks.case import CLIPS, T5S
from benchmarks.floor import clip_image, t5_row

ROWS, READ, WRITTEN = 4, 71, 16


def operations(function, *shapes) -> float:
  """Operations as XLA counts them before it optimizes; nothing is compiled or run."""
  return jax.jit(function).lower(*shapes).cost_analysis()["flops"]


@pytest.fixture(scope="module")
def t5():
  graph, state = nnx.split(outline(T5, T5S["small"]))
  prefix = jax.ShapeDtypeStruct((ROWS, READ, 512), jnp.float32)
  targets = jax.ShapeDtypeStruct((ROWS, WRITTEN), jnp.int32)

  def logits(state, prefix, targets):
    model, mask = nnx.merge(graph, state), jnp.ones((ROWS, READ), bool)
    hidden = model.decode(shift_right(targets), model.encode(prefix, mask), mask)
    return model.logits(hidden)

  return logits, state, prefix, targets


def test_the_operations_of_a_row_equal_those_of_the_program(t5):
  logits, *shapes = t5
  exact = ROWS * t5_row(T5S["small"], READ, WRITTEN).forward
  assert operations(logits, *shapes) == pytest.approx(exact, rel=0.04)


def test_no_gradient_of_a_frozen_weight_is_computed(t5):
  """With gradients of weights the products would be those of three forward passes, not two."""
  logits, state, prefix, targets = t5
  total = lambda state, prefix, targets: logits(state, prefix, targets).sum()  # noqa: E731
  forward = operations(logits, state, prefix, targets)
  ours = operations(jax.grad(total, argnums=1), state, prefix, targets)
  with_weights = operations(jax.grad(total, argnums=(0, 1)), state, prefix, targets)
  assert ours < 2.1 * forward
  assert with_weights > 2.8 * forward


def test_the_operations_of_an_image_equal_those_of_the_program():
  graph, state = nnx.split(outline(Clip, CLIPS["B/32"]))
  pixels = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  run = lambda state, pixels: nnx.merge(graph, state).encode_image(pixels)  # noqa: E731
  assert operations(run, state, pixels) == pytest.approx(clip_image(CLIPS["B/32"]), rel=0.04)
