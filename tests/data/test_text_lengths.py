"""How far texts are padded in a split, and that what is cut of it was nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from afspl_jax.config import experiment as settings
from afspl_jax.models.captioner import Captioner, module_leaves
from afspl_jax.models.huggingface import weights
from afspl_jax.models.prompter.prompter import Prompter
from afspl_jax.training.losses import token_cross_entropy


def test_texts_are_padded_to_the_longest_of_the_split_within_the_setting(make_split):
  lengths = lambda batch: (batch.instruction.shape[1], batch.targets.shape[1])  # noqa: E731
  everyone = np.arange(len(make_split()))
  long = make_split(instruction_length=40, target_length=90)
  batch = long.batch(everyone, len(everyone))
  for length, mask in zip(
    lengths(batch), (batch.instruction_mask, batch.targets_mask), strict=True
  ):
    longest = mask.sum(axis=1).max()
    assert longest <= length < longest + 2 and length % 2 == 0
  assert lengths(batch) == lengths(long.batch(everyone[:1], 1))
  short = make_split(instruction_length=5, target_length=7)
  assert lengths(short.batch(everyone[:1], 1)) == (5, 7)


def test_cutting_padding_changes_neither_loss_nor_gradient(make_split, tiny_checkpoints):
  short = make_split(instruction_length=40, target_length=90).batch(np.arange(8), 8)
  fill = lambda x, width: np.pad(x, ((0, 0), (0, width - x.shape[1])))  # noqa: E731
  long = short._replace(
    instruction=fill(short.instruction, 40),
    instruction_mask=fill(short.instruction_mask, 40),
    targets=fill(short.targets, 90),
    targets_mask=fill(short.targets_mask, 90),
  )
  assert short.instruction.shape[1] < 40 and short.targets.shape[1] < 90
  clip = weights.load_vision_encoder(tiny_checkpoints.clip)
  t5 = weights.load_language_model(tiny_checkpoints.t5)
  words = t5.embedding[...], jnp.zeros(0, jnp.int32)
  prompter = nnx.jit(lambda: Prompter(settings.Prompter(), clip.sizes, *words, rngs=nnx.Rngs(0)))()
  captioner, frozen = Captioner(prompter, t5), module_leaves(t5)

  @jax.jit
  @jax.value_and_grad
  def loss(params, batch):
    logits = captioner.logits(frozen, captioner.encode(params, frozen, batch), batch.targets)
    return token_cross_entropy(logits, batch.targets, batch.targets_mask).nats

  (a, to_a), (b, to_b) = (loss(module_leaves(prompter), batch) for batch in (short, long))
  np.testing.assert_allclose(a, b, rtol=1e-5)
  assert optax.tree.norm(to_a) > 1e-3
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5), to_a, to_b)
