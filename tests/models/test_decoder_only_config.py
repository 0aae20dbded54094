"""Key tables of Llama and GPT-2 at published sizes, and their configs against transformers'."""

import pytest
import torch
import transformers
from flax import nnx

from afspl_jax.errors import UserError
from afspl_jax.models.architectures import architectures
from afspl_jax.models.gpt2.config import Gpt2Config
from afspl_jax.models.huggingface.weights import outline
from afspl_jax.models.layers.rotary import Stretch
from afspl_jax.models.llama.config import LlamaConfig
from tests.models.decoder_only_pairs import GPT2S, LLAMAS, STRETCHED, reference

# The fields of the published files, and the number of parameters that their model cards give.
PUBLISHED = {
  "SmolLM2-135M": (
    {
      "model_type": "llama",
      "vocab_size": 49152,
      "hidden_size": 576,
      "intermediate_size": 1536,
      "num_hidden_layers": 30,
      "num_attention_heads": 9,
      "num_key_value_heads": 3,
      "max_position_embeddings": 8192,
      "rms_norm_eps": 1e-05,
      "rope_theta": 100000,
      "rope_scaling": None,
      "tie_word_embeddings": True,
      "bos_token_id": 0,
      "eos_token_id": 0,
    },
    134_515_008,
  ),
  "TinyLlama-1.1B": (
    {
      "model_type": "llama",
      "vocab_size": 32000,
      "hidden_size": 2048,
      "intermediate_size": 5632,
      "num_hidden_layers": 22,
      "num_attention_heads": 32,
      "num_key_value_heads": 4,
      "max_position_embeddings": 2048,
      "rms_norm_eps": 1e-05,
      "rope_scaling": None,
      "tie_word_embeddings": False,
      "bos_token_id": 1,
      "eos_token_id": 2,
    },
    1_100_048_384,
  ),
  "Llama-3.2-1B": (
    {
      "model_type": "llama",
      "vocab_size": 128256,
      "hidden_size": 2048,
      "intermediate_size": 8192,
      "num_hidden_layers": 16,
      "num_attention_heads": 32,
      "num_key_value_heads": 8,
      "head_dim": 64,
      "max_position_embeddings": 131072,
      "rms_norm_eps": 1e-05,
      "rope_theta": 500000.0,
      "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
      },
      "tie_word_embeddings": True,
      "bos_token_id": 128000,
      "eos_token_id": 128001,
    },
    1_235_814_400,
  ),
  "gpt2": (
    {
      "model_type": "gpt2",
      "n_ctx": 1024,
      "n_embd": 768,
      "n_head": 12,
      "n_layer": 12,
      "n_positions": 1024,
      "vocab_size": 50257,
      "bos_token_id": 50256,
      "eos_token_id": 50256,
    },
    124_439_808,
  ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_key_table_covers_the_full_size_exactly(name):
  raw, number = PUBLISHED[name]
  architecture = architectures()[raw["model_type"]]
  config, theirs = architecture.read_config(raw, {}), transformers.AutoConfig.for_model(**raw)
  with torch.device("meta"):
    tensors = transformers.AutoModelForCausalLM.from_config(theirs).state_dict()
  table = architecture.key_table(config)
  assert set(table.leaves) <= set(tensors) <= set(table.leaves) | set(table.copies)
  leaves = dict(nnx.to_flat_state(nnx.state(outline(architecture.model, config))))
  assert {leaf.path for leaf in table.leaves.values()} == set(leaves)
  for key, (path, layout) in table.leaves.items():
    assert layout.torch_shape(leaves[path].shape) == tuple(tensors[key].shape), key
  assert sum(leaf.size for leaf in leaves.values()) == number


@pytest.mark.parametrize("name", [*LLAMAS, *GPT2S])
def test_config_round_trip(name):
  theirs = reference(name).config.to_dict()
  architecture = architectures()[theirs["model_type"]]
  config = architecture.read_config(theirs, {})
  assert architecture.read_config(config.to_hf(), {}) == config
  again = transformers.AutoConfig.for_model(**config.to_hf()).to_dict()
  assert architecture.read_config(again, {}) == config


def test_defaults_are_those_of_transformers():
  assert LlamaConfig.from_hf({}) == LlamaConfig() == LlamaConfig.from_hf(read("llama"))
  assert Gpt2Config.from_hf({}) == Gpt2Config() == Gpt2Config.from_hf(read("gpt2"))
  assert LlamaConfig.from_hf(dict.fromkeys(LlamaConfig().to_hf())) == LlamaConfig()
  assert Gpt2Config.from_hf(dict.fromkeys(Gpt2Config().to_hf())) == Gpt2Config()
  assert Gpt2Config.from_hf({"n_embd": 24}).mlp_width == 96
  small = LlamaConfig.from_hf({"hidden_size": 48, "num_attention_heads": 6})
  assert (small.groups, small.head_width) == (6, 8)


def read(model_type: str) -> dict:
  return transformers.AutoConfig.for_model(model_type).to_dict()


@pytest.mark.parametrize("field", ["rope_parameters", "rope_scaling"])
def test_stretched_rotations_are_read_from_both_places(field):
  config = LlamaConfig.from_hf({field: STRETCHED})
  assert config.stretch == Stretch(factor=8.0, low=1.0, high=4.0, positions=32)
  assert config.rope_base == 100.0
  old = {name: value for name, value in STRETCHED.items() if name != "rope_theta"}
  assert LlamaConfig.from_hf({field: old, "rope_theta": 7.0}).rope_base == 7.0


@pytest.mark.parametrize(
  ("config", "raw", "message"),
  [
    (LlamaConfig, {"rope_scaling": {"type": "yarn"}}, '"rope_type" must be "default" or "llama3"'),
    (LlamaConfig, {"rope_parameters": [1]}, '"rope_parameters" must be an object; got [1]'),
    (LlamaConfig, {"rope_scaling": {"rope_type": "llama3"}}, "factor, low_freq_factor, high_freq"),
    (LlamaConfig, {"rope_theta": "a"}, "\"rope_theta\" must be float; got 'a'"),
    (LlamaConfig, {"num_key_value_heads": 5}, "num_key_value_heads divides, and an even head_dim"),
    (LlamaConfig, {"hidden_size": 96}, "an even head_dim; got 32, 32 and 3"),
    (LlamaConfig, {"eos_token_id": 32000}, "eos_token_id below vocab_size, 32000; got 32000"),
    (LlamaConfig, {"eos_token_id": [1, 2]}, '"eos_token_id" must be int; got [1, 2]'),
    (LlamaConfig, {"hidden_act": "mish"}, "(hidden_act): expected one of gelu,"),
    (Gpt2Config, {"n_head": 5}, "n_embd that n_head divides; got 768 and 5"),
    (Gpt2Config, {"scale_attn_weights": False}, '"scale_attn_weights" must be true; got False'),
    (Gpt2Config, {"tie_word_embeddings": False}, '"tie_word_embeddings" must be true; got False'),
    (Gpt2Config, {"eos_token_id": -1}, "below vocab_size, 50257; got -1"),
    (Gpt2Config, {"n_layer": 1.5}, '"n_layer" must be int; got 1.5'),
  ],
)
def test_unsupported_config_is_named(config, raw, message):
  with pytest.raises(UserError) as error:
    config.from_hf(raw)
  assert message in str(error.value)
