"""Products of low precision: the type that is multiplied, and what the sums are."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from afspl_jax.models.clip.clip import Clip
from afspl_jax.models.layers.products import dense, einsum
from afspl_jax.models.t5.t5 import T5
from tests.conftest import CLIP, T5_CONFIG

EQUATIONS = [
  ("bhqk,bhmk->bhqm", (2, 3, 4, 5), (2, 3, 6, 5)),
  ("bhqm,bhmk->bhqk", (2, 3, 4, 6), (2, 3, 6, 5)),
  ("...d,dn->...n", (2, 3, 4), (4, 7)),
]


def operands(equation, seed=0):
  _, a, b = next(row for row in EQUATIONS if row[0] == equation)
  rng = np.random.default_rng(seed)
  return [jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in (a, b)]


@pytest.mark.parametrize("equation", [row[0] for row in EQUATIONS])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_sums_and_gradients_equal_float32_ones_rounded_once(equation, dtype):
  a, b = operands(equation)
  wide = [x.astype(jnp.float32) for x in (a, b)]
  out, back = jax.vjp(lambda a, b: einsum(equation, a, b, dtype), a, b)
  exact, exact_back = jax.vjp(lambda a, b: jnp.einsum(equation, a, b), *wide)
  assert out.dtype == dtype
  half = 2.0**-8 if dtype == "bfloat16" else 1e-6  # of the last digit that is kept
  np.testing.assert_allclose(np.float32(out), exact, rtol=half, atol=1e-5)
  # The cotangent is representable, so that nothing but the sum is rounded.
  cotangent = jnp.asarray(np.random.default_rng(1).normal(size=out.shape), jnp.bfloat16)
  for got, want in zip(
    back(cotangent.astype(dtype)), exact_back(cotangent.astype(jnp.float32)), strict=True
  ):
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(got), want, rtol=2.0**-8, atol=1e-5)


def test_float32_products_are_those_of_jax():
  a, b = (x.astype(jnp.float32) for x in operands("...d,dn->...n"))
  layer = dense(*b.shape, 1.0, use_bias=False, rngs=nnx.Rngs(0))
  layer.kernel[...] = b
  np.testing.assert_array_equal(layer(a), a @ b)


def test_operands_of_different_dtypes_are_rejected():
  a, b = operands("...d,dn->...n")
  with pytest.raises(TypeError, match="one dtype; got bfloat16 and float32"):
    einsum("...d,dn->...n", a, b.astype(jnp.float32), jnp.float32)


def kinds(function, *args):
  """Of all products as XLA is given them: types of the operands, and of the sums."""
  text = jax.jit(function).lower(*args).as_text()
  of = r"tensor<[\dx]*(\w+)>"
  return re.findall(rf"dot_general.*: \({of}, {of}\) -> {of}", text)


def test_every_product_of_the_frozen_models_has_their_dtype_and_float32_sums():
  """Any other takes twice as long on a CPU, forward or backward."""
  half = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16, "rngs": nnx.Rngs(0)}
  t5, clip = T5(T5_CONFIG, **half), Clip(CLIP, **half)
  seen, ids = jnp.ones((2, 5), bool), jnp.ones((2, 4), jnp.int32)

  def loss(embeddings):
    logits = t5.logits(t5.decode(ids, t5.encode(embeddings, seen), seen))
    return jax.nn.logsumexp(logits, axis=-1).sum()

  read = jnp.ones((2, 5, T5_CONFIG.width), jnp.bfloat16)
  forward, both = kinds(loss, read), kinds(jax.grad(loss), read)
  assert len(both) > 1.5 * len(forward) > 30
  assert set(both) == {("bf16", "bf16", "f32")}
  images = jnp.ones((2, 32, 32, 3), jnp.bfloat16)
  assert set(kinds(clip.encode_image, images)) == {("bf16", "bf16", "f32")}
