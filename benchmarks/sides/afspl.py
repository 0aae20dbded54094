"""afspl_jax: cached features, all clients in one step, decoding in one program."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Int

from afspl_jax.models.captioner import Captioner, module_leaves
from afspl_jax.models.clip.clip import Clip
from afspl_jax.models.decoding import Decoding, make_decoder
from afspl_jax.models.huggingface.weights import load_language_model, load_vision_encoder
from afspl_jax.models.prompter.prompter import Prompter
from afspl_jax.models.t5.t5 import T5
from afspl_jax.training.mesh import make_mesh, replicate
from afspl_jax.training.train_step import make_local_training
from afspl_jax.types import Batch
from benchmarks.case import Case, Rows
from benchmarks.sides.side import Leaves, Trained

_BATCH = 32  # images that CLIP encodes at a time


class Afspl:
  """The programs that `launch.py` runs; see `Side`."""

  def __init__(self, case: Case, folders: Mapping[str, Path], params: Leaves):
    self._case, self._params = case, params
    dtype = jnp.dtype(case.dtype)
    clip = load_vision_encoder(folders["clip"], dtype, dtype)
    t5 = load_language_model(folders["t5"], dtype, dtype)
    graph, self._clip = nnx.split(clip)
    self._encode = jax.jit(lambda state, x: nnx.merge(graph, state).encode_image(x))
    self._mesh = make_mesh()
    self._captioner = Captioner(_prompter(case, clip, t5), t5)
    self._frozen = replicate(module_leaves(t5), self._mesh)
    self._training: dict[tuple[int, int], Any] = {}  # by local steps and batch size
    self._decoding: dict[Decoding, Any] = {}

  def encode(self) -> None:
    """Encodes all images and stores their features, as the feature cache does."""
    images = self._case.pixels()
    parts = [
      jax.device_get(self._encode(self._clip, images[i : i + _BATCH]))
      for i in range(0, len(images), _BATCH)
    ]
    self._tokens, self._joint = (np.concatenate(x) for x in zip(*parts, strict=True))

  def train(self, rows: Rows) -> Trained:
    """Trains with one call of the cohort's program."""
    steps, clients, batch = rows.image.shape
    key = (steps, batch)
    if key not in self._training:
      optim = self._case.config.optim
      optim = dataclasses.replace(optim, local_steps=steps, batch_size=batch)
      self._training[key] = make_local_training(
        self._captioner, optim, 1, lambda params, start: jnp.zeros(()), self._mesh
      )
    start = jax.tree.map(lambda x: np.broadcast_to(x, (clients, *x.shape)), self._params)
    out = self._training[key](
      replicate(start, self._mesh), self._frozen, start, self._batch(rows), jnp.asarray(0)
    )
    params, metrics = jax.device_get(out)
    return Trained(metrics.loss, params)

  def generate(self, rows: Rows, beams: int, tokens: int) -> Int[np.ndarray, "n t"]:
    """Generates with one call of the decoding program."""
    config = Decoding(max_tokens=tokens, min_tokens=tokens, beams=beams)
    if config not in self._decoding:
      self._decoding[config] = make_decoder(self._captioner, config, self._mesh)
    batch = self._batch(Rows(*(x[0, 0] for x in rows)))
    return np.asarray(self._decoding[config](self._params, self._frozen, batch).ids)

  def compiled(self) -> int:
    """Returns the number of compiled training programs."""
    return sum(program._cache_size() for program in self._training.values())

  def _batch(self, rows: Rows) -> Batch:
    caption = np.zeros_like(rows.text)
    return Batch(self._tokens[rows.image], self._joint[rows.image], *rows[1:], caption=caption)


def untrained(case: Case, folders: Mapping[str, Path]) -> Leaves:
  """Returns the initial leaves of every side."""
  prompter = _prompter(
    case, load_vision_encoder(folders["clip"]), load_language_model(folders["t5"])
  )
  return jax.device_get(module_leaves(prompter))


def _prompter(case: Case, clip: Clip, t5: T5) -> Prompter:
  words = jnp.zeros(0, jnp.int32)
  embedding = t5.embedding[...]
  return Prompter(case.config.prompter, clip.sizes, embedding, words, rngs=nnx.Rngs(0))
