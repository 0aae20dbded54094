"""Generated texts, token for token against transformers in torch, and on any batch and devices."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

import afspl_jax
from afspl_jax.config import experiment as settings
from afspl_jax.errors import UserError
from afspl_jax.models.captioner import Captioner, module_leaves, soft_prefix
from afspl_jax.models.contracts import LanguageModel
from afspl_jax.models.decoding import Decoding, make_decoder, top
from afspl_jax.models.huggingface import weights
from afspl_jax.models.prompter.prompter import Prompter
from afspl_jax.models.t5.t5 import T5
from tests.conftest import CLIP, T5_CONFIG, Model, make_batch, make_model
from tests.models import decoder_only_pairs

TINY = Path(afspl_jax.__file__).parent / "models" / "tiny" / "t5"
INPUTS = 112  # for each of the models
LONGEST = 20

# name: variant, and a token that ends their texts at many lengths
DECODER_ONLY = {
  "llama": ("llama: tied head, two queries a key (SmolLM2)", 16),
  "gpt2": ("gpt2", 22),
}
PARITY = [
  Decoding(LONGEST),
  Decoding(LONGEST, min_tokens=4, no_repeat_ngram=2),
  Decoding(LONGEST, beams=4),
  Decoding(LONGEST, beams=4, length_penalty=0.6, no_repeat_ngram=3, min_tokens=5),
  Decoding(LONGEST, beams=4, length_penalty=2.0, no_repeat_ngram=2),
]
# (model, settings): the others on the one that tells more about them.
CASES = [
  *((model, each) for model in ("tiny", "random", "llama", "gpt2") for each in PARITY),
  ("tiny", Decoding(LONGEST, no_repeat_ngram=3)),
  ("tiny", Decoding(LONGEST, beams=2, length_penalty=0.0)),
  ("tiny", Decoding(LONGEST, beams=5, length_penalty=-0.5, min_tokens=LONGEST - 1)),
  ("random", Decoding(LONGEST, beams=5, no_repeat_ngram=1)),
  ("random", Decoding(2, beams=4, no_repeat_ngram=3)),
  ("random", Decoding(1, beams=2, min_tokens=1)),
  ("llama", Decoding(LONGEST, beams=5, no_repeat_ngram=1)),
  ("llama", Decoding(1, beams=2, min_tokens=1)),
]


@dataclass
class Pair:
  """A captioner, and the language model in it as transformers loads it."""

  model: Model
  language_model: LanguageModel
  reference: transformers.PreTrainedModel


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, randomize) -> Iterator[dict[str, Pair]]:
  """The shipped T5, whose texts end, a random one, whose texts go on, and decoder-only models."""
  threads = torch.get_num_threads()
  torch.set_num_threads(1)  # models this small have no use for more
  folder = tmp_path_factory.mktemp("random_t5")
  weights.save_backbone(T5(T5_CONFIG, rngs=nnx.Rngs(1)), folder)
  out = {}
  for name, path in (("tiny", TINY), ("random", folder)):
    reference = transformers.T5ForConditionalGeneration.from_pretrained(path).eval()
    out[name] = make_pair(weights.load_language_model(path), reference)
  for name, (variant, end) in DECODER_ONLY.items():
    reference = randomize(decoder_only_pairs.reference(variant, eos_token_id=end), seed=1)
    ours = decoder_only_pairs.load(reference, tmp_path_factory.mktemp(name))
    out[name] = make_pair(ours, reference)
  yield out
  torch.set_num_threads(threads)


def make_pair(language_model: LanguageModel, reference: transformers.PreTrainedModel) -> Pair:
  config = settings.Prompter(tokens=4, pool=6, k_max=3, key_dim=5, fusion_hidden=7)
  words = language_model.embedding_matrix(), jnp.zeros(0, jnp.int32)
  prompter = Prompter(config, CLIP.sizes, *words, rngs=nnx.Rngs(2))
  leaves = module_leaves(prompter), module_leaves(language_model)
  return Pair(Model(Captioner(prompter, language_model), *leaves), language_model, reference)


def generate(pair: Pair, batch, config: Decoding) -> SimpleNamespace:
  """The reference's texts for the prefixes that ours reads, padded, and their scores."""
  prompted = pair.model.captioner.prompt(pair.model.params, batch)
  words = pair.language_model.embed(batch.instruction)
  inputs = torch.from_numpy(np.array(jnp.concatenate([soft_prefix(prompted), words], axis=1)))
  mask = torch.ones(inputs.shape[:2], dtype=torch.int64)
  mask[:, -words.shape[1] :] = torch.from_numpy(np.array(batch.instruction_mask))
  starts = pair.reference.config.is_encoder_decoder
  if not starts:
    inputs, mask = decoder_only_pairs.left_padded(inputs, mask)
  options = {"length_penalty": config.length_penalty, "early_stopping": False}
  with torch.no_grad():
    out = pair.reference.generate(
      inputs_embeds=inputs,
      attention_mask=mask,
      pad_token_id=0,
      max_new_tokens=config.max_tokens,
      min_new_tokens=config.min_tokens,
      no_repeat_ngram_size=config.no_repeat_ngram,
      num_beams=config.beams,
      do_sample=False,
      return_dict_in_generate=True,
      output_scores=True,
      **(options if config.beams > 1 else {}),
    )
  ids = out.sequences[:, 1 if starts else 0 :].numpy()
  ids = np.pad(ids, ((0, 0), (0, config.max_tokens - ids.shape[1])))
  # Its beam search fills up with the end token where, as here, the pad token is 0.
  captioner = pair.model.captioner
  ids = np.where(ended_before(ids, captioner.eos_id), captioner.pad_id, ids)
  return SimpleNamespace(ids=ids, scores=getattr(out, "sequences_scores", None))


def ended_before(ids: np.ndarray, end: int) -> np.ndarray:
  """Where a text has ended at an earlier position."""
  return np.cumsum(ids == end, axis=1) - (ids == end) > 0


# Only the text, as ours, and not the prefix, whose words transformers does not see.
@pytest.mark.filterwarnings("ignore:Passing `no_repeat_ngram_size` with `inputs_embeds`")
@pytest.mark.parametrize(("name", "config"), CASES, ids=lambda case: str(case))
def test_texts_and_scores_equal_transformers(pairs, one_device, name, config):
  pair, batch = pairs[name], make_batch(5, INPUTS)
  model = pair.model
  ours = make_decoder(model.captioner, config, one_device)(model.params, model.frozen, batch)
  theirs = generate(pair, batch, config)
  np.testing.assert_array_equal(ours.ids, theirs.ids)
  if config.beams > 1:
    np.testing.assert_allclose(ours.scores, theirs.scores.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "distinct"), [("tiny", 0.8), ("llama", 0.6), ("gpt2", 0.6)])
def test_texts_end_at_many_lengths(pairs, one_device, name, distinct):
  """Without which the comparison above would say little."""
  model = pairs[name].model
  decoder = make_decoder(model.captioner, Decoding(LONGEST, beams=4), one_device)
  ids = np.asarray(decoder(model.params, model.frozen, make_batch(5, INPUTS)).ids)
  lengths = (~ended_before(ids, model.captioner.eos_id)).sum(axis=1)
  assert len(set(lengths.tolist())) > 10
  assert len(np.unique(ids, axis=0)) > distinct * INPUTS
  assert 0.2 < np.mean(lengths < LONGEST) < 0.9


@pytest.mark.parametrize(
  "config", [Decoding(8), Decoding(8, beams=3, length_penalty=0.7)], ids=["greedy", "beams"]
)
def test_scores_are_the_teacher_forced_log_probabilities(model, one_device, config):
  batch = make_batch(3, 8)
  decoded = make_decoder(model.captioner, config, one_device)(model.params, model.frozen, batch)
  encoded = model.encode(model.params, batch)
  logits = model.logits(encoded, decoded.ids)
  gains = jnp.take_along_axis(jax.nn.log_softmax(logits), decoded.ids[..., None], axis=-1)[..., 0]
  counted = ~ended_before(np.asarray(decoded.ids), model.captioner.eos_id)
  expected = np.sum(np.asarray(gains), axis=1, where=counted)
  if config.beams > 1:
    expected /= counted.sum(axis=1) ** config.length_penalty
  np.testing.assert_allclose(decoded.scores, expected, rtol=1e-4)


@pytest.mark.parametrize(
  "config",
  [Decoding(10, no_repeat_ngram=2), Decoding(10, beams=4, no_repeat_ngram=2)],
  ids=["greedy", "beams"],
)
def test_neither_batch_size_nor_devices_change_a_text(model, one_device, four_devices, config):
  batch = make_batch(3, 16)
  texts = {}
  for mesh in (one_device, four_devices):
    decoder = make_decoder(model.captioner, config, mesh)
    for rows, size in ((1, mesh.size), (7, 8), (16, 16)):
      filled = np.minimum(np.arange(size), rows - 1)
      some = jax.tree.map(lambda x, filled=filled: x[filled], batch)
      decoded = decoder(model.params, model.frozen, some)
      texts[mesh.size, rows] = np.asarray(decoded.ids)[:rows]
  for (_, rows), ids in texts.items():
    np.testing.assert_array_equal(ids, texts[1, 16][:rows])
  assert len(np.unique(texts[1, 16], axis=0)) > 8


def test_forked_texts_keep_their_own_history(pairs):
  t5, rng = pairs["random"].language_model, np.random.default_rng(0)
  rows, beams, length, before = 3, 4, 7, 2
  mask = np.arange(6) < np.array([[6], [4], [1]])
  words = jnp.asarray(rng.integers(2, 40, (rows, 6)), jnp.int32)
  encoded = t5.encode(t5.embed(words), jnp.asarray(mask))
  step = nnx.jit(lambda t5, ids, cache: t5.decode_step(ids, cache))
  teach = nnx.jit(lambda t5, ids: t5.logits(t5.decode(ids, encoded, jnp.asarray(mask))))
  cache = t5.start_cache(encoded, jnp.asarray(mask), length)
  pasts = np.zeros((rows, 1, 0), np.int32)
  for i in range(length):
    if i == before:
      whole, cache = cache, cache.fork(beams)
      assert cache.cross_keys is whole.cross_keys, "a row's texts share what they attend to"
      pasts = np.repeat(pasts, beams, axis=1)
    tokens = rng.integers(2, 40, pasts.shape[:2]).astype(np.int32)
    logits, cache = step(t5, jnp.asarray(tokens.ravel()), cache)
    pasts = np.concatenate([pasts, tokens[..., None]], axis=2)
    room = np.pad(pasts, ((0, 0), (0, 0), (0, length - i - 1)))
    taught = [teach(t5, jnp.asarray(room[:, j]))[:, i] for j in range(room.shape[1])]
    expected = np.stack(taught, axis=1)
    np.testing.assert_allclose(logits, expected.reshape(logits.shape), rtol=1e-4, atol=1e-4)
    parents = rng.integers(0, pasts.shape[1], pasts.shape[:2]).astype(np.int32)
    cache = cache.follow(jnp.asarray(parents))
    pasts = np.take_along_axis(pasts, parents[..., None], axis=1)


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    ({"max_tokens": 0}, "eval.max_tokens: expected at least 1; got 0"),
    ({"beams": 0}, "eval.beams: expected at least 1; got 0"),
    ({"min_tokens": 9}, "eval.min_tokens: expected at most eval.max_tokens, 8; got 9"),
    ({"min_tokens": -1}, "eval.min_tokens: expected at least 0; got -1"),
    ({"no_repeat_ngram": -2}, "eval.no_repeat_ngram: expected at least 0; got -2"),
    ({"length_penalty": float("nan")}, "eval.length_penalty: expected a finite number; got nan"),
  ],
)
def test_a_wrong_setting_is_a_user_error(wrong, message):
  with pytest.raises(UserError, match=message):
    Decoding(**{"max_tokens": 8} | wrong)


def test_too_many_beams_for_the_vocabulary_are_a_user_error(one_device):
  model = make_model()
  decoder = make_decoder(model.captioner, Decoding(4, beams=21), one_device)
  with pytest.raises(UserError, match="beams: expected at most 20, half of"):
    decoder(model.params, model.frozen, make_batch(0, 2))


@pytest.mark.parametrize("vocabulary", [40, 1100, 1280])
@pytest.mark.parametrize("k", [1, 2, 8])
def test_blockwise_top_k_equals_top_k_also_for_ties(vocabulary, k):
  rng = np.random.default_rng(0)
  logits = rng.integers(0, 30, size=(50, vocabulary)).astype(np.float32)  # many are equal
  logits[rng.random(logits.shape) < 0.2] = -np.inf
  logits[0] = -np.inf
  values, tokens = top(jnp.asarray(logits), k)
  order = np.argsort(-logits, axis=-1, kind="stable")[:, :k]
  np.testing.assert_array_equal(tokens, order)
  np.testing.assert_array_equal(values, np.take_along_axis(logits, order, axis=-1))
