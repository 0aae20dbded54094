"""bfloat16 at the depth and the widths of Flan-T5-XL, with activations beyond float16's range.

Deep T5s have a few channels with activations of more than 65,504, float16's largest number. All of
Flan-T5-XL has 3 billion parameters, so one test has its depth and the other its widths.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from afspl_jax.models.huggingface.weights import outline
from afspl_jax.models.t5.architecture import t5_key_table
from afspl_jax.models.t5.config import T5Config
from afspl_jax.models.t5.layers import encoder_layer
from afspl_jax.models.t5.t5 import T5, shift_right

XL = {"buckets": 32, "activation": "gelu_new", "gated": True, "tied_head": False}
DEEP = T5Config(
  vocab_size=500,
  width=64,
  head_width=8,
  mlp_width=160,
  heads=8,
  encoder_layers=24,
  decoder_layers=24,
  scaled_head=False,
  **XL,
)
WIDE = T5Config(
  vocab_size=500,
  width=2048,
  head_width=64,
  mlp_width=5120,
  heads=32,
  encoder_layers=1,
  decoder_layers=1,
  scaled_head=False,
  **XL,
)
MASSIVE = [3, 17, 40, 61]  # the channels


def t5s(config: T5Config) -> tuple[T5, T5]:
  """The same model in float32 and in bfloat16; its weights are numbers that both have."""
  rng = np.random.default_rng(0)
  block = rng.standard_normal(1 << 22, np.float32)  # repeated: 100 million take seconds to draw

  def weights(path, leaf):
    name, shape = jax.tree_util.keystr(path), leaf.shape
    values = np.resize(block, shape)
    if "final_norm" in name:
      values = 1 + 0.1 * values
      values[MASSIVE] *= 1e-5  # so that the other channels decide
    elif len(shape) == 1:
      values = 0.1 + 0.02 * values
      values[MASSIVE] *= 0.05
    elif "embedding" in name:
      values *= 5
    elif "position" not in name:
      values *= shape[0] ** -0.5
      if "mlp" in name and "'out'" in name:
        values[:, MASSIVE] *= 1e7
    return jnp.asarray(values, jnp.bfloat16)

  graph, state = nnx.split(outline(T5, config))
  half, _ = nnx.split(outline(T5, config, jnp.bfloat16, jnp.bfloat16))
  state = jax.tree_util.tree_map_with_path(weights, state)
  full = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), state)
  return nnx.merge(graph, full), nnx.merge(half, state)


def theirs(config: T5Config, model: T5) -> torch.nn.Module:
  """transformers' T5 with the weights of ours."""
  fields = transformers.T5Config(
    vocab_size=config.vocab_size,
    d_model=config.width,
    d_kv=config.head_width,
    d_ff=config.mlp_width,
    num_layers=config.encoder_layers,
    num_decoder_layers=config.decoder_layers,
    num_heads=config.heads,
    feed_forward_proj="gated-gelu",
    tie_word_embeddings=False,
    decoder_start_token_id=0,
  )
  leaves = dict(nnx.to_flat_state(nnx.state(model)))
  tensors = {
    key: torch.tensor(np.asarray(layout.to_torch(np.asarray(leaves[path][...]))))
    for key, (path, layout) in t5_key_table(config).leaves.items()
  }
  for side in ("encoder", "decoder"):
    tensors[f"{side}.embed_tokens.weight"] = tensors["shared.weight"]
  with torch.device("meta"):
    reference = transformers.T5ForConditionalGeneration(fields)
  reference.lm_head.weight = torch.nn.Parameter(tensors["lm_head.weight"])  # its own, untied
  reference.load_state_dict(tensors, assign=True)
  return reference.eval()


@pytest.mark.parametrize("config", [DEEP, WIDE], ids=["depth", "widths"])
def test_bfloat16_is_near_float32_at_the_size_of_flan_t5_xl(config):
  rng, mask = np.random.default_rng(1), np.ones((2, 12), bool)
  mask[1, 7:] = False
  ids, targets = (rng.integers(2, config.vocab_size, shape) for shape in ((2, 12), (2, 8)))
  models, found = t5s(config), []
  for model in models:
    x = model.embed(jnp.asarray(ids))
    bias = model.encoder.bias(12) + jnp.zeros((2, 1, 1, 1))
    assert 65504 < jnp.abs(encoder_layer(model.encoder.layers[0], x, bias)).max() < 1e7
    encoded = model.encode(x, jnp.asarray(mask))
    decoded = model.decode(shift_right(jnp.asarray(targets)), encoded, jnp.asarray(mask))
    logits = model.logits(decoded)
    assert logits.dtype == jnp.float32 and jnp.isfinite(logits).all()
    found.append(np.asarray(logits, np.float64))
  reference = theirs(config, models[0])
  inputs = {"input_ids": ids, "attention_mask": mask.astype(int), "labels": targets}
  with torch.no_grad():
    for dtype in (torch.float32, torch.bfloat16):
      given = {name: torch.tensor(value) for name, value in inputs.items()}
      found.append(reference.to(dtype)(**given).logits.double().numpy())
  full, half, their_full, their_half = found
  error = lambda x: np.sqrt(np.mean((x - their_full) ** 2)) / their_full.std()  # noqa: E731
  assert error(full) < 1e-5
  assert error(half) < 0.05 and error(half) < 1.5 * error(their_half)
