import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from transformers.models.t5.modeling_t5 import T5Attention

from afspl_jax.models.huggingface.weights import load_language_model, outline
from afspl_jax.models.t5.architecture import t5_key_table
from afspl_jax.models.t5.config import T5Config
from afspl_jax.models.t5.relative_position import relative_buckets
from afspl_jax.models.t5.t5 import T5, shift_right

TOLERANCE = 1e-5
PADDED = np.array([[1] * 9, [1] * 4 + [0] * 5, [0, 0] + [1] * 5 + [0, 0]], bool)

SMALL = {
  "vocab_size": 50,
  "d_model": 24,
  "d_kv": 10,
  "num_heads": 3,
  "d_ff": 40,
  "decoder_start_token_id": 0,
}
# name: config fields, whether the head has weights of its own
VARIANTS = {
  "v1.0: relu, tied and scaled head": ({"num_layers": 2, "num_decoder_layers": 3}, False),
  "v1.1: gated, head of its own": (
    {
      "num_layers": 3,
      "num_decoder_layers": 1,
      "feed_forward_proj": "gated-gelu",
      "tie_word_embeddings": False,
      "relative_attention_num_buckets": 8,
      "relative_attention_max_distance": 12,
    },
    True,
  ),
  "gated, tied head that is not scaled, as transformers 5 trains it": (
    {
      "num_layers": 2,
      "feed_forward_proj": "gated-silu",
      "tie_word_embeddings": False,
      "layer_norm_epsilon": 1e-3,
    },
    False,
  ),
}
MT5 = {"model_type": "mt5", "feed_forward_proj": "gated-gelu", "num_layers": 2}
VARIANTS |= {
  "mt5: gated, head of its own": (MT5, True),
  "mt5: gated, tied head, never scaled": (MT5, False),
}
FLAN = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
TINY = T5Config(
  vocab_size=50,
  width=24,
  head_width=10,
  mlp_width=40,
  encoder_layers=2,
  decoder_layers=2,
  heads=3,
  activation="gelu_new",
  gated=True,
  tied_head=False,
  scaled_head=False,
)


@pytest.fixture(scope="module")
def tiny() -> T5:
  return nnx.jit(lambda: T5(TINY, rngs=nnx.Rngs(0)))()


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request, tmp_path_factory, randomize):
  """A random T5ForConditionalGeneration and ours, loaded from its checkpoint."""
  fields, own_head = VARIANTS[request.param]
  if fields.get("model_type") == "mt5":
    reference = transformers.MT5ForConditionalGeneration(transformers.MT5Config(**SMALL | fields))
  else:
    reference = transformers.T5ForConditionalGeneration(transformers.T5Config(**SMALL | fields))
  if own_head:
    # transformers 5 ties the head whatever the config says, unless a file holds both.
    reference.lm_head.weight = torch.nn.Parameter(torch.empty(50, 24))
  randomize(reference, seed=2)
  folder = tmp_path_factory.mktemp("t5")
  reference.save_pretrained(folder)
  ours = load_language_model(folder)
  assert ours.config.tied_head != own_head
  assert ours.config.model_type == reference.config.model_type
  return reference, ours


@pytest.fixture(scope="module")
def tokens():
  rng = np.random.default_rng(0)
  return rng.integers(2, 50, (3, 9)).astype(np.int32), rng.integers(2, 50, (3, 7)).astype(np.int32)


@nnx.jit
def forward(t5, embeddings, mask, targets):
  encoded = t5.encode(embeddings, mask)
  hidden = t5.decode(targets, encoded, mask)
  return encoded, hidden, t5.logits(hidden)


@nnx.jit
def step(t5, ids, cache):
  return t5.decode_step(ids, cache)


@pytest.mark.parametrize("mask", [np.ones_like(PADDED), PADDED], ids=["whole", "padded"])
def test_states_and_logits_equal_transformers(pair, tokens, relative_error, mask):
  reference, t5 = pair
  ids, targets = tokens
  encoded, hidden, logits = forward(t5, t5.embed(jnp.asarray(ids)), mask, targets)
  with torch.no_grad():
    theirs_mask = torch.from_numpy(mask.astype(np.int64))
    theirs = reference(
      input_ids=torch.from_numpy(ids).long(),
      attention_mask=theirs_mask,
      decoder_input_ids=torch.from_numpy(targets).long(),
      use_cache=False,
    )
    theirs_hidden = reference.decoder(
      input_ids=torch.from_numpy(targets).long(),
      encoder_hidden_states=theirs.encoder_last_hidden_state,
      encoder_attention_mask=theirs_mask,
      use_cache=False,
    ).last_hidden_state
  assert relative_error(encoded, theirs.encoder_last_hidden_state) < TOLERANCE
  assert relative_error(hidden, theirs_hidden) < TOLERANCE
  assert relative_error(logits, theirs.logits) < TOLERANCE


def test_gradient_of_the_loss_by_input_embeddings_equals_transformers(pair, tokens, relative_error):
  reference, t5 = pair
  ids, labels = tokens
  graph, state = nnx.split(t5)

  @jax.jit
  def gradient(embeddings):
    def loss(embeddings):
      t5 = nnx.merge(graph, state)
      hidden = t5.decode(shift_right(jnp.asarray(labels)), t5.encode(embeddings, mask), mask)
      scores = jax.nn.log_softmax(t5.logits(hidden))
      return -jnp.mean(jnp.take_along_axis(scores, jnp.asarray(labels)[..., None], axis=-1))

    return jax.grad(loss)(embeddings)

  mask = jnp.asarray(PADDED)
  embeddings = t5.embed(jnp.asarray(ids))
  inputs = torch.from_numpy(np.array(embeddings)).requires_grad_()
  reference(
    inputs_embeds=inputs,
    attention_mask=torch.from_numpy(PADDED.astype(np.int64)),
    labels=torch.from_numpy(labels).long(),
  ).loss.backward()
  assert relative_error(gradient(embeddings), inputs.grad) < TOLERANCE


def test_steps_equal_the_teacher_forced_decoder(pair, tokens, relative_error):
  t5 = pair[1]
  ids, targets = tokens
  encoded, _, logits = forward(t5, t5.embed(jnp.asarray(ids)), PADDED, targets)
  # More room than steps, so that what is not yet written must not be seen.
  cache = t5.start_cache(encoded, jnp.asarray(PADDED), 10)
  for i in range(targets.shape[1]):
    scores, cache = step(t5, jnp.asarray(targets[:, i]), cache)
    assert relative_error(scores, logits[:, i]) < TOLERANCE
  assert int(cache.step) == 7
  assert [x.shape for x in cache.self_keys] == [(3, 3, 10, 10)] * t5.config.decoder_layers


def test_the_cache_works_in_a_loop_on_the_device(pair, tokens):
  """What decoding does: the cache is the carry of a scan, so its types must not change."""
  t5 = pair[1]
  graph, state = nnx.split(t5)

  @jax.jit
  def run(embeddings):
    t5 = nnx.merge(graph, state)
    mask = jnp.asarray(PADDED)
    cache = t5.start_cache(t5.encode(embeddings, mask), mask, 4)

    def step(carry, _):
      ids, cache = carry
      scores, cache = t5.decode_step(ids, cache)
      best = jnp.argmax(scores, axis=-1).astype(jnp.int32)
      return (best, cache), best

    return jax.lax.scan(step, (jnp.zeros(3, jnp.int32), cache), length=4)[1].T

  ids = run(t5.embed(jnp.asarray(tokens[0])))
  reference = pair[0].generate(
    torch.from_numpy(tokens[0]).long(),
    attention_mask=torch.from_numpy(PADDED.astype(np.int64)),
    max_new_tokens=4,
    min_new_tokens=4,
    do_sample=False,
    use_cache=False,
    eos_token_id=None,
  )
  np.testing.assert_array_equal(ids, reference[:, 1:])


def test_masked_positions_have_no_effect(pair, tokens, relative_error):
  t5 = pair[1]
  embeddings = t5.embed(jnp.asarray(tokens[0]))
  other = jnp.where(PADDED[..., None], embeddings, 100.0)
  logits = forward(t5, embeddings, PADDED, tokens[1])[2]
  assert relative_error(forward(t5, other, PADDED, tokens[1])[2], logits) < 1e-6


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "far"), [(32, 128), (8, 12), (16, 100), (64, 1000)])
def test_buckets_equal_transformers(bidirectional, buckets, far):
  ours = relative_buckets(
    700, 300, num_buckets=buckets, max_distance=far, bidirectional=bidirectional
  )
  distance = torch.arange(300)[None, :] - torch.arange(700)[:, None]
  theirs = T5Attention._relative_position_bucket(distance, bidirectional, buckets, far)
  np.testing.assert_array_equal(ours, theirs.numpy())


def test_shift_right_equals_transformers(pair):
  labels = np.array([[5, 6, 1, -100], [7, 1, -100, -100]], np.int32)
  theirs = pair[0]._shift_right(torch.from_numpy(labels).long())
  np.testing.assert_array_equal(shift_right(jnp.asarray(labels)), theirs.numpy())
  np.testing.assert_array_equal(shift_right(jnp.array([[3, 4]]), pad_id=9), [[9, 3]])


def test_every_parameter_has_a_gradient(tiny, tokens):
  graph, params = nnx.split(tiny)

  @jax.jit
  def gradients(params):
    def loss(params):
      t5 = nnx.merge(graph, params)
      mask = jnp.asarray(PADDED)
      encoded = t5.encode(t5.embed(jnp.asarray(tokens[0])), mask)
      scores = jax.nn.log_softmax(t5.logits(t5.decode(jnp.asarray(tokens[1]), encoded, mask)))
      return -jnp.mean(scores[..., 3])

    return jax.grad(loss)(params)

  for path, gradient in nnx.to_flat_state(gradients(params)):
    assert 0 < np.abs(gradient[...]).max() < 1e3, path


def test_initial_weights_follow_transformers(tiny):
  torch.manual_seed(0)
  fields = FLAN | {"num_layers": 2, "tie_word_embeddings": False}
  reference = transformers.T5ForConditionalGeneration(transformers.T5Config(**SMALL | fields))
  tensors, leaves = reference.state_dict(), dict(nnx.to_flat_state(nnx.state(tiny)))
  for key, (path, _) in t5_key_table(TINY).leaves.items():
    ours, theirs = np.asarray(leaves[path][...], np.float64), tensors[key].double().numpy()
    # Four standard errors of the difference of two samples.
    error = 4 * (2 / ours.size) ** 0.5
    assert abs(ours.mean() - theirs.mean()) <= error * theirs.std(), key
    assert ours.std() == pytest.approx(theirs.std(), rel=error), key


def test_bfloat16_computes_near_float32_and_keeps_float32_parameters(tiny, tokens, relative_error):
  half = outline(T5, TINY, dtype=jnp.bfloat16)
  graph, state = nnx.split(half)
  assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}
  half = nnx.merge(graph, nnx.state(tiny))
  embeddings = tiny.embed(jnp.asarray(tokens[0]))
  encoded, hidden, logits = forward(half, embeddings, PADDED, tokens[1])
  assert (encoded.dtype, hidden.dtype, logits.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
  assert relative_error(logits, forward(tiny, embeddings, PADDED, tokens[1])[2]) < 0.05
  cache = half.start_cache(encoded, jnp.asarray(PADDED), 3)
  scores, cache = step(half, jnp.asarray(tokens[1][:, 0]), cache)
  assert (scores.dtype, cache.self_keys[0].dtype) == (jnp.float32, jnp.bfloat16)
  assert relative_error(scores, logits[:, 0]) < 0.02


def test_bfloat16_parameters_halve_the_memory():
  half = outline(T5, TINY, param_dtype=jnp.bfloat16)
  assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(half))} == {jnp.dtype("bfloat16")}
