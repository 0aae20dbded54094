"""T5's key table against transformers' checkpoints, and its config against theirs."""

import json

import pytest
import torch
import transformers
from flax import nnx
from test_t5 import FLAN, TINY

from afspl_jax.models.huggingface.weights import outline
from afspl_jax.models.t5.architecture import t5_key_table
from afspl_jax.models.t5.config import T5Config
from afspl_jax.models.t5.t5 import T5

FULL_SIZES = {
  "t5-small v1.0": {},
  "flan-t5-small": FLAN
  | {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_heads": 6},
  "flan-t5-base": FLAN
  | {"d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
  "flan-t5-large": FLAN
  | {"d_model": 1024, "d_kv": 64, "d_ff": 2816, "num_layers": 24, "num_heads": 16},
  "flan-t5-xl": FLAN
  | {"d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24, "num_heads": 32},
  "ul2": {
    "feed_forward_proj": "gated-silu",
    "tie_word_embeddings": False,
    "d_model": 4096,
    "d_kv": 256,
    "d_ff": 16384,
    "num_layers": 32,
    "num_heads": 16,
  },
  "byt5-small": FLAN
  | {
    "vocab_size": 384,
    "d_model": 1472,
    "d_kv": 64,
    "d_ff": 3584,
    "num_layers": 12,
    "num_decoder_layers": 4,
    "num_heads": 6,
  },
}


@pytest.mark.parametrize("name", FULL_SIZES)
def test_key_table_covers_the_full_size_exactly(name):
  config = transformers.T5Config(**FULL_SIZES[name])
  # What the published files say; transformers 5 forgets it when it writes the config again.
  tied = FULL_SIZES[name].get("tie_word_embeddings", True)
  check_keys(config, T5Config.from_hf(config.to_dict() | {"tie_word_embeddings": tied}))


def test_key_table_covers_mt5_small_exactly():
  fields = {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_heads": 6}
  raw = FLAN | fields | {"model_type": "mt5", "vocab_size": 250112}
  with torch.device("meta"):
    theirs = transformers.MT5ForConditionalGeneration(transformers.MT5Config(**raw)).state_dict()
  ours = T5Config.from_hf(raw)
  table = t5_key_table(ours)
  assert (ours.model_type, ours.tied_head, ours.scaled_head) == ("mt5", False, False)
  assert T5Config.from_hf(ours.to_hf()) == ours
  assert set(theirs) == set(table.leaves) | set(table.copies)
  leaves = dict(nnx.to_flat_state(nnx.state(outline(T5, ours))))
  for key, (path, layout) in table.leaves.items():
    assert layout.torch_shape(leaves[path].shape) == tuple(theirs[key].shape), key


@pytest.mark.parametrize("name", ["flan-t5-small", "flan-t5-base"])
def test_key_table_covers_the_published_config_exactly(hf_data, name):
  path = hf_data / "t5" / f"{name}.config.json"
  ours = T5Config.from_hf(json.loads(path.read_text()))
  assert (ours.activation, ours.gated, ours.tied_head) == ("gelu_new", True, False)
  check_keys(transformers.T5Config.from_json_file(path), ours)


def check_keys(theirs: transformers.T5Config, ours: T5Config):
  with torch.device("meta"):
    tensors = transformers.T5ForConditionalGeneration(theirs).state_dict()
  table = t5_key_table(ours)
  assert set(tensors) == set(table.leaves) | set(table.copies)
  state = nnx.state(outline(T5, ours))
  leaves = dict(nnx.to_flat_state(state))
  assert {leaf.path for leaf in table.leaves.values()} == set(leaves)
  for key, (path, layout) in table.leaves.items():
    assert layout.torch_shape(leaves[path].shape) == tuple(tensors[key].shape), key


def test_config_round_trip():
  assert T5Config.from_hf(TINY.to_hf()) == TINY
  assert T5Config.from_hf({}) == T5Config.from_hf(transformers.T5Config().to_dict()) == T5Config()
  assert T5Config.from_hf({"num_layers": 3, "num_decoder_layers": None}).decoder_layers == 3


def test_null_is_the_default():
  raw = dict.fromkeys(T5Config().to_hf()) | {"model_type": "t5"}
  assert T5Config.from_hf(raw) == T5Config()
  assert T5Config.from_hf(raw | {"decoder_start_token_id": 0}) == T5Config()
  assert T5Config.from_hf({"eos_token_id": [1], "pad_token_id": [0]}) == T5Config()


@pytest.mark.parametrize(
  ("raw", "own_head", "tied", "scaled"),
  [
    ({"tie_word_embeddings": False}, True, False, False),  # T5 v1.1 and Flan-T5 as published
    ({"tie_word_embeddings": True}, True, False, False),  # the same, written by transformers 5
    ({"tie_word_embeddings": True}, False, True, True),  # T5 v1.0
    ({}, False, True, True),
    ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, False, True, False),
    ({"tie_word_embeddings": False}, False, True, False),
  ],
)
def test_the_weights_decide_whether_the_head_is_tied(raw, own_head, tied, scaled):
  config = T5Config.from_hf(raw).for_checkpoint(raw, separate_head=own_head)
  assert (config.tied_head, config.scaled_head) == (tied, scaled)


@pytest.mark.parametrize(
  ("raw", "message"),
  [
    ({"model_type": "umt5"}, '"model_type" must be "t5" or "mt5"; got \'umt5\''),
    ({"feed_forward_proj": "gated-mish"}, "quick_gelu, relu, silu; got 'mish'"),
    ({"decoder_start_token_id": 5}, '"decoder_start_token_id" must be the pad token, 0; got 5'),
    ({"d_model": 1.5}, '"d_model" must be int; got 1.5'),
    ({"num_heads": 0}, '"num_heads" must be at least 1; got 0'),
    ({"eos_token_id": [1, 2]}, '"eos_token_id" must be int; got [1, 2]'),
    ({"eos_token_id": 32128}, "below vocab_size, 32128; got 0 and 32128"),
    ({"pad_token_id": -1}, "below vocab_size, 32128; got -1 and 1"),
    ({"pad_token_id": None, "decoder_start_token_id": 2}, "must be the pad token, 0; got 2"),
    ({"relative_attention_num_buckets": 7}, "even number of buckets"),
  ],
)
def test_unsupported_config_is_named(raw, message):
  with pytest.raises(ValueError) as error:
    T5Config.from_hf(raw)
  assert message in str(error.value)
