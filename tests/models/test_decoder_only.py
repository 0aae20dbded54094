"""Llama and GPT-2 against transformers in torch: a prefix of embeddings, and a text after it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file, save_file

from afspl_jax.errors import UserError
from afspl_jax.models.huggingface.weights import load_language_model, outline, save_backbone
from tests.models.decoder_only_pairs import GPT2, VARIANTS, left_padded, load, reference

TOLERANCE = 1e-5
# Prefixes of nine positions: whole; as ours, soft prompts and then a padded instruction; anything.
MASKS = {
  "whole": np.ones((3, 9), bool),
  "as the captioner makes it": np.arange(9) < np.array([[9], [6], [5]]),
  "padding anywhere": np.array([[0, 1] * 4 + [0], [0, 0] + [1] * 7, [1] * 2 + [0] * 7], bool),
}


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request, tmp_path_factory, randomize):
  """A random model of transformers, and ours from its checkpoint."""
  theirs = randomize(reference(request.param), seed=2)
  return theirs, load(theirs, tmp_path_factory.mktemp("decoder_only"))


@pytest.fixture(scope="module")
def tokens():
  rng = np.random.default_rng(0)
  embeddings = rng.normal(size=(3, 9, 16)).astype(np.float32)
  return embeddings, rng.integers(2, 40, (3, 7)).astype(np.int32)


def taught(theirs, embeddings, mask, targets) -> torch.Tensor:
  """The reference's logits of each target token; one row at a time, without padding."""
  words, logits = theirs.get_input_embeddings()(torch.from_numpy(targets).long()), []
  for row, kept, text in zip(embeddings, mask, words, strict=True):
    seen = torch.cat([row[torch.from_numpy(kept)], text[:-1]])
    logits.append(theirs(inputs_embeds=seen[None]).logits[0, -len(text) :])
  return torch.stack(logits)


@nnx.jit
def ours_taught(model, embeddings, mask, targets):
  return model.target_logits(model.encode(embeddings, mask), mask, targets)


@nnx.jit(static_argnames="length")
def start(model, embeddings, mask, length):
  return model.start(model.encode(embeddings, mask), mask, length)


@nnx.jit
def step(model, ids, cache):
  return model.decode_step(ids, cache)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_logits_equal_transformers(pair, tokens, relative_error, mask):
  theirs, ours = pair
  embeddings, targets = tokens
  with torch.no_grad():
    expected = taught(theirs, torch.from_numpy(embeddings), mask, targets)
  assert relative_error(ours_taught(ours, embeddings, mask, targets), expected) < TOLERANCE
  first = ours_taught(ours, embeddings, mask, targets[:, :1])
  assert relative_error(first, expected[:, :1]) < TOLERANCE


def test_gradient_of_the_loss_by_the_prefix_equals_transformers(pair, tokens, relative_error):
  theirs, ours = pair
  embeddings, targets = tokens
  mask = MASKS["as the captioner makes it"]
  seen, labels = jnp.asarray(mask), jnp.asarray(targets)
  graph, state = nnx.split(ours)

  @jax.jit
  @jax.grad
  def gradient(embeddings):
    model = nnx.merge(graph, state)
    prefix = model.encode(embeddings, seen)
    scores = jax.nn.log_softmax(model.target_logits(prefix, seen, labels))
    loss = -jnp.mean(jnp.take_along_axis(scores, labels[..., None], axis=-1))
    return loss + jnp.sum(jnp.sin(model.summarise(prefix, seen)))

  inputs = torch.from_numpy(embeddings).requires_grad_()
  logits = taught(theirs, inputs, mask, targets)
  scores = torch.log_softmax(logits, dim=-1)
  loss = -scores.gather(2, torch.from_numpy(targets).long()[..., None]).mean()
  for row, kept in zip(inputs, mask, strict=True):
    states = theirs.base_model(inputs_embeds=row[torch.from_numpy(kept)][None]).last_hidden_state
    loss = loss + states[0].mean(dim=0).sin().sum()
  loss.backward()
  assert relative_error(gradient(jnp.asarray(embeddings)), inputs.grad) < TOLERANCE


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_steps_equal_the_teacher_forced_logits(pair, tokens, relative_error, mask):
  ours = pair[1]
  embeddings, targets = tokens
  expected = ours_taught(ours, embeddings, mask, targets)
  # More room than steps, so that what is not yet written must not be seen.
  logits, cache = start(ours, embeddings, mask, length=10)
  for i in range(targets.shape[1]):
    assert relative_error(logits, expected[:, i]) < TOLERANCE
    logits, cache = step(ours, jnp.asarray(targets[:, i]), cache)


def test_forked_texts_keep_their_own_history(pair, tokens, relative_error):
  ours, rng = pair[1], np.random.default_rng(0)
  embeddings, mask = tokens[0], MASKS["as the captioner makes it"]
  rows, beams, length, before = 3, 4, 6, 2
  _, cache = start(ours, embeddings, mask, length=length)
  pasts = np.zeros((rows, 1, 0), np.int32)
  for i in range(length - 1):
    if i == before:
      cache, pasts = cache.fork(beams), np.repeat(pasts, beams, axis=1)
    chosen = rng.integers(2, 40, pasts.shape[:2]).astype(np.int32)
    logits, cache = step(ours, jnp.asarray(chosen.ravel()), cache)
    pasts = np.concatenate([pasts, chosen[..., None]], axis=2)
    room = np.pad(pasts, ((0, 0), (0, 0), (0, length - pasts.shape[2])))
    expected = [
      ours_taught(ours, embeddings, mask, room[:, j])[:, i + 1] for j in range(room.shape[1])
    ]
    assert relative_error(logits, np.stack(expected, axis=1).reshape(logits.shape)) < TOLERANCE
    parents = rng.integers(0, pasts.shape[1], pasts.shape[:2]).astype(np.int32)
    cache = cache.follow(jnp.asarray(parents))
    pasts = np.take_along_axis(pasts, parents[..., None], axis=1)


def test_tokens_equal_generate_with_prefixes_padded_on_the_left(pair, tokens):
  theirs, ours = pair
  embeddings, mask = tokens[0], MASKS["as the captioner makes it"]
  moved, kept = left_padded(torch.from_numpy(embeddings), torch.from_numpy(mask))
  options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
  expected = theirs.generate(inputs_embeds=moved, attention_mask=kept.long(), **options)

  def best(logits):
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)

  @nnx.jit
  def run(model, logits, cache):
    """The cache is the carry of a scan, so its types must not change."""

    def step(carry, _):
      logits, cache = model.decode_step(*carry)
      return (best(logits), cache), best(logits)

    _, others = jax.lax.scan(step, (best(logits), cache), length=5)
    return jnp.stack([best(logits), *others], axis=1)

  texts = run(ours, *start(ours, embeddings, mask, length=6))
  np.testing.assert_array_equal(texts, expected)


def test_masked_positions_have_no_effect(pair, tokens):
  ours, (embeddings, targets) = pair[1], tokens
  for mask in MASKS.values():
    other = np.where(mask[..., None], embeddings, 100.0).astype(np.float32)
    np.testing.assert_array_equal(
      ours_taught(ours, other, mask, targets), ours_taught(ours, embeddings, mask, targets)
    )


def test_bfloat16_computes_near_float32(pair, tokens, relative_error):
  ours, (embeddings, targets) = pair[1], tokens
  mask = MASKS["as the captioner makes it"]
  graph, _ = nnx.split(outline(type(ours), ours.config, dtype=jnp.bfloat16))
  half = nnx.merge(graph, nnx.state(ours))
  expected = ours_taught(ours, embeddings, mask, targets)
  logits = ours_taught(half, embeddings, mask, targets)
  assert logits.dtype == jnp.float32
  assert 0 < relative_error(logits, expected) < 0.1
  _, cache = start(half, embeddings, mask, length=3)
  assert {x.dtype for x in (*cache.keys, *cache.values)} == {jnp.dtype("bfloat16")}


def test_our_checkpoint_is_the_same_model_for_transformers(pair, tokens, tmp_path, relative_error):
  theirs, ours = pair
  save_backbone(ours, tmp_path)
  assert (
    json.loads((tmp_path / "config.json").read_text())["model_type"] == theirs.config.model_type
  )
  again = type(theirs).from_pretrained(tmp_path).eval()
  assert load_language_model(tmp_path).config == ours.config
  ids = torch.from_numpy(tokens[1]).long()
  with torch.no_grad():
    assert relative_error(again(ids).logits, theirs(ids).logits) < 1e-6


def test_a_gpt2_without_the_prefix_of_its_keys_loads(tmp_path, randomize, tokens):
  """As OpenAI's checkpoints are: a GPT2Model, with its masks."""
  ours = load(randomize(reference("gpt2"), seed=2), tmp_path)
  tensors = load_file(tmp_path / "model.safetensors")
  bare = {key.removeprefix("transformer."): tensor for key, tensor in tensors.items()}
  bare.pop("lm_head.weight", None)
  bare["h.0.attn.bias"] = np.ones((1, 1, GPT2["n_positions"], GPT2["n_positions"]), np.float32)
  save_file(bare, tmp_path / "model.safetensors")
  mask = MASKS["whole"]
  np.testing.assert_array_equal(
    ours_taught(load_language_model(tmp_path), tokens[0], mask, tokens[1]),
    ours_taught(ours, tokens[0], mask, tokens[1]),
  )


def test_more_positions_than_the_model_knows_are_an_error(pair, tokens):
  ours, embeddings = pair[1], jnp.zeros((1, 60, 16))
  mask = jnp.ones((1, 60), bool)
  prefix = jax.eval_shape(ours.encode, embeddings, mask)
  targets = jax.ShapeDtypeStruct((1, 5), jnp.int32)
  jax.eval_shape(ours.target_logits, prefix, mask, targets)
  jax.eval_shape(lambda prefix: ours.start(prefix, mask, 5), prefix)
  for call in (
    lambda: jax.eval_shape(ours.encode, jnp.zeros((1, 65, 16)), jnp.ones((1, 65), bool)),
    lambda: jax.eval_shape(
      ours.target_logits, prefix, mask, jax.ShapeDtypeStruct((1, 6), jnp.int32)
    ),
    lambda: jax.eval_shape(lambda prefix: ours.start(prefix, mask, 6), prefix),
  ):
    with pytest.raises(UserError, match=r"at most 64 tokens together, .*; got 65. Lower data"):
      call()
