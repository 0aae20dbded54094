"""Pretrains the tiny T5 on text (T5 v1.1: gated gelu_new, untied head)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

from afspl_jax.models.huggingface import weights
from afspl_jax.models.huggingface.preprocessing import Tokenizer
from afspl_jax.models.t5.config import T5Config
from afspl_jax.models.t5.t5 import T5, shift_right
from pretrain.corpus import Corpus, TextBatch, embed
from pretrain.prefetch import prefetch
from pretrain.tokenizers import save_t5_tokenizer

BATCH = 48
PEAK_LR = 6e-4  # of matrices; at 2e-3 the model does not learn which object has an attribute
# Factors of the learning rate: T5's initialisation gives these leaves other scales than matrices.
LR_FACTORS = {"matrix": 1.0, "embedding": 15.0, "bias": 50.0, "norm": 5.0}


def pretrain(folder: Path, steps: int, seed: int) -> float:
  """Trains, writes a Hugging Face checkpoint folder, and returns the last loss (nats per token)."""
  save_t5_tokenizer(folder)
  vocabulary = Tokenizer(folder).vocabulary
  corpus = Corpus(vocabulary)
  config = T5Config(
    vocab_size=len(vocabulary),
    width=128,
    head_width=32,
    mlp_width=256,
    encoder_layers=3,
    decoder_layers=2,
    heads=4,
    activation="gelu_new",
    gated=True,
    tied_head=False,
    scaled_head=False,
  )
  graph, params = nnx.split(T5(config, rngs=nnx.Rngs(seed)))
  # T5 initialises the head at scale 1, for batches of thousands; with ours that does not converge.
  params["head"].set_value(params["head"][...] * config.width**-0.5)
  optimizer = _optimizer(params, steps)
  opt_state = optimizer.init(params)

  @jax.jit
  def step(params, opt_state, batch: TextBatch, key):
    def loss_fn(params):
      model = nnx.merge(graph, params)
      x = embed(model.embedding[...], batch, key)
      encoded = model.encode(x, batch.mask)
      hidden = model.decode(shift_right(batch.targets), encoded, batch.mask)
      losses = optax.softmax_cross_entropy_with_integer_labels(model.logits(hidden), batch.targets)
      return jnp.sum(losses * batch.target_weights) / jnp.sum(batch.target_weights)

    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss

  key = jax.random.key(seed)
  recent: list[float] = []
  batches = prefetch(lambda i: corpus.batch(np.random.default_rng((seed, i)), BATCH), steps)
  bar = tqdm(batches, total=steps, desc="T5 on text", unit="step")
  for i, batch in enumerate(bar):
    params, opt_state, loss = step(params, opt_state, batch, jax.random.fold_in(key, i))
    recent = [*recent[-99:], float(loss)]
    if i % 50 == 49:
      bar.set_postfix(loss=f"{np.mean(recent):.3f}", refresh=False)
  weights.save_backbone(nnx.merge(graph, params), folder)
  return float(np.mean(recent))


def _optimizer(params, steps: int) -> optax.GradientTransformation:
  schedule = optax.warmup_cosine_decay_schedule(
    0.0, PEAK_LR, min(100, steps // 2), steps, 0.02 * PEAK_LR
  )

  def label(path, leaf) -> str:
    name = jax.tree_util.keystr(path)
    if "position_bias" in name:
      return "bias"
    if name.startswith("['embedding']"):
      return "embedding"
    return "norm" if leaf.ndim == 1 else "matrix"

  labels = jax.tree_util.tree_map_with_path(label, params)
  groups = {
    name: optax.adam(lambda step, factor=factor: factor * schedule(step), b2=0.98)
    for name, factor in LR_FACTORS.items()
  }
  return optax.chain(optax.clip_by_global_norm(1.0), optax.partition(groups, labels))
