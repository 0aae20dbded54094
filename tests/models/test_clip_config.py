"""CLIP's key table against transformers' checkpoints, and its config against theirs."""

import json

import pytest
import torch
import transformers
from flax import nnx
from test_clip import TINY, hf_config

from afspl_jax.models.clip.architecture import clip_key_table
from afspl_jax.models.clip.clip import Clip
from afspl_jax.models.clip.config import ClipConfig, ClipTextConfig
from afspl_jax.models.huggingface.weights import outline

FULL_SIZES = {
  "ViT-B/32": ({}, {}, 512),
  "ViT-L/14": (
    {
      "hidden_size": 1024,
      "intermediate_size": 4096,
      "num_hidden_layers": 24,
      "num_attention_heads": 16,
      "patch_size": 14,
    },
    {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    768,
  ),
}


@pytest.mark.parametrize("name", FULL_SIZES)
def test_key_table_covers_the_full_size_exactly(name):
  config = hf_config(*FULL_SIZES[name])
  check_keys(config, ClipConfig.from_hf(config.to_dict()))


def test_key_table_covers_the_published_config_exactly(hf_data):
  path = hf_data / "clip" / "clip-vit-base-patch32.config.json"
  check_keys(
    transformers.CLIPConfig.from_json_file(path),
    ClipConfig.from_hf(json.loads(path.read_text())),
  )


def check_keys(theirs: transformers.CLIPConfig, ours: ClipConfig):
  with torch.device("meta"):
    tensors = transformers.CLIPModel(theirs).state_dict()
  table = clip_key_table(ours)
  assert {key for key in tensors if key not in table.ignored} == set(table.leaves)
  state = nnx.state(outline(Clip, ours))
  leaves = dict(nnx.to_flat_state(state))
  assert {leaf.path for leaf in table.leaves.values()} == set(leaves)
  for key, (path, layout) in table.leaves.items():
    assert layout.torch_shape(leaves[path].shape) == tuple(tensors[key].shape), key


def test_config_round_trip():
  assert ClipConfig.from_hf(TINY.to_hf()) == TINY
  bare = ClipConfig(text=ClipTextConfig(bos_id=None, pad_id=None))
  assert ClipConfig.from_hf(bare.to_hf()) == bare
  assert ClipConfig.from_hf(transformers.CLIPConfig().to_dict()) == ClipConfig()
  assert ClipConfig.from_hf({}) == ClipConfig()


def test_null_is_the_default():
  vision = dict.fromkeys(("image_size", "num_channels", "layer_norm_eps", "hidden_act"))
  text = dict.fromkeys(("vocab_size", "layer_norm_eps", "eos_token_id", "num_hidden_layers"))
  raw = {"vision_config": vision, "text_config": text, "projection_dim": None}
  assert ClipConfig.from_hf(raw) == ClipConfig()
  assert ClipConfig.from_hf({"vision_config": None, "text_config": None}) == ClipConfig()
  assert ClipConfig.from_hf({"text_config": {"eos_token_id": [5]}}).text.eos_id == 5


def test_an_old_config_dict_takes_precedence():
  raw = {"text_config": {"hidden_size": 8, "eos_token_id": 2}, "vision_config": {}}
  old = {"hidden_size": 24, "num_attention_heads": 3}
  ours = ClipConfig.from_hf(raw | {"text_config_dict": old}).text
  theirs = transformers.CLIPConfig(**raw, text_config_dict=dict(old)).text_config
  assert (ours.width, ours.heads, ours.eos_id) == (24, 3, 49407)
  assert ours.width == theirs.hidden_size and ours.eos_id == theirs.eos_token_id


@pytest.mark.parametrize(
  ("raw", "message"),
  [
    ({"model_type": "siglip"}, '"model_type" must be "clip"; got \'siglip\''),
    ({"vision_config": {"hidden_act": "mish"}}, "quick_gelu, relu, silu; got 'mish'"),
    ({"vision_config": {"num_channels": 1}}, '"num_channels" must be 3; got 1'),
    ({"vision_config": {"image_size": [224, 192]}}, '"image_size" must be a square'),
    ({"vision_config": {"patch_size": 448}}, "patch_size no larger than image_size"),
    ({"vision_config": {"hidden_size": "768"}}, "\"hidden_size\" must be int; got '768'"),
    ({"text_config": {"num_hidden_layers": 0}}, '"num_hidden_layers" must be at least 1'),
    ({"text_config": {"eos_token_id": [1, 2]}}, '"eos_token_id" must be int'),
    ({"text_config": {"num_attention_heads": 7}}, "multiple of the heads"),
    (
      {"text_config": {"vocab_size": 99}},
      "eos_token_id (49407 if it is absent) below vocab_size, 99",
    ),
    ({"text_config": {"eos_token_id": None, "vocab_size": 99}}, "pooled there; got 49407"),
    ({"text_config": {"eos_token_id": 49408}}, "pooled there; got 49408"),
    ({"text_config": {"eos_token_id": -1}}, "pooled there; got -1"),
  ],
)
def test_unsupported_config_is_named(raw, message):
  with pytest.raises(ValueError) as error:
    ClipConfig.from_hf(raw)
  assert message in str(error.value)
