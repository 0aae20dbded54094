"""Small models with NumPy's values, and their checkpoints changed on disk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from afspl_jax.models.huggingface.weights import BackboneError, load_backbone, outline
from afspl_jax.models.t5.config import T5Config

SIZES = {
  "vocab_size": 30,
  "width": 12,
  "head_width": 5,
  "mlp_width": 20,
  "encoder_layers": 1,
  "decoder_layers": 2,
  "heads": 2,
}
T5S = {
  "v1.0": T5Config(**SIZES),
  "v1.1": T5Config(**SIZES, activation="gelu_new", gated=True, tied_head=False, scaled_head=False),
  "gated, tied, unscaled": T5Config(
    **SIZES, activation="gelu_new", gated=True, tied_head=True, scaled_head=False
  ),
  "own head, scaled": T5Config(**SIZES, tied_head=False, scaled_head=True),
}


def random_model(model: type, config, seed: int = 0) -> nnx.Module:
  """A model with NumPy's values, which takes no compilation."""
  rng = np.random.default_rng(seed)
  graph, state = nnx.split(outline(model, config))
  return nnx.merge(
    graph,
    jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape, scale=0.3), x.dtype), state),
  )


def change(folder, name="model.safetensors", **tensors):
  """Rewrites a weight file with other tensors; None takes one away. Dots are written __."""
  held = load_file(folder / name)
  for key, tensor in tensors.items():
    held.pop(key.replace("__", "."), None)
    if tensor is not None:
      held[key.replace("__", ".")] = tensor
  save_file(held, folder / name)


def problems(folder) -> str:
  with pytest.raises(BackboneError) as error:
    load_backbone(folder)
  assert str(error.value).startswith(f"{folder}: ")
  for problem in error.value.problems:
    assert problem in str(error.value)
  return str(error.value)
