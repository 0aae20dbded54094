"""The shortest possible time of a computation on this machine, from its speed and the operations.

The machine's speed is measured: on a shared machine the processor's specification says little.
Operations are counted from the models' sizes; a multiplication with its addition counts as two.
"""

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from afspl_jax.models.clip.config import ClipConfig
from afspl_jax.models.t5.config import T5Config

_SHAPES = ((2048, 512, 1024), (2048, 768, 3072), (512, 512, 32128))  # of products in the benchmarks


class Rates(NamedTuple):
  """The machine's speed: the best of several tries on all cores of this process."""

  multiply: float  # floating-point operations a second in matrix products
  read: float  # bytes a second, of arrays larger than any cache


def measure(dtype: str = "float32") -> Rates:
  """Measures the machine's speed in a few seconds; products are in `dtype`, sums in float32."""
  best = 0.0
  for m, k, n in _SHAPES:
    product = jax.jit(functools.partial(jnp.matmul, preferred_element_type=jnp.float32))
    a, b = jnp.ones((m, k), dtype), jnp.ones((k, n), dtype)
    best = max(best, 2 * m * k * n / _least(lambda: product(a, b).block_until_ready()))  # noqa: B023
  large, total = jnp.ones(64 << 20), jax.jit(jnp.sum)
  return Rates(best, large.nbytes / _least(lambda: total(large).block_until_ready()))


def _least(work: Callable[[], object]) -> float:
  work()
  seconds = []
  for _ in range(7):
    start = time.perf_counter()
    work()
    seconds.append(time.perf_counter() - start)
  return min(seconds)


def clip_image(config: ClipConfig) -> float:
  """Returns the operations of CLIP's vision tower for one image."""
  vision = config.vision
  tokens = 1 + vision.num_patches
  patch = 3 * vision.patch_size**2 * vision.width
  layer = 4 * vision.width**2 + 2 * vision.width * vision.mlp_width
  attention = 2 * tokens * vision.width
  joint = vision.width * config.joint_width
  return 2 * (tokens * (patch + vision.layers * (layer + attention)) + joint)


class T5Work(NamedTuple):
  """Operations of the forward pass for one row."""

  encoder: float
  cross: float  # the decoder's keys and values, computed from the encoder's output
  decoder: float
  head: float

  @property
  def forward(self) -> float:
    """Operations of a forward pass."""
    return sum(self)

  @property
  def train(self) -> float:
    """Operations of a training step, whose backward pass has no gradients of weights."""
    return 2 * self.forward


def t5_row(config: T5Config, read: int, written: float) -> T5Work:
  """Returns the operations for `read` encoder positions and `written` target tokens."""
  inner = config.heads * config.head_width
  attention = 4 * config.width * inner
  mlp = (3 if config.gated else 2) * config.width * config.mlp_width
  encoder = read * config.encoder_layers * (attention + mlp + 2 * read * inner)
  cross = read * config.decoder_layers * 2 * config.width * inner
  of_token = attention + attention / 2 + mlp + 2 * (read + written / 2) * inner
  decoder = written * config.decoder_layers * of_token
  head = written * config.width * config.vocab_size
  return T5Work(*(2.0 * x for x in (encoder, cross, decoder, head)))
