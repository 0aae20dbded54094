import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file

from afspl_jax.models.clip import clip
from afspl_jax.models.clip.config import ClipConfig, ClipTextConfig, ClipVisionConfig
from afspl_jax.models.huggingface.weights import (
  load_backbone,
  load_language_model,
  load_vision_encoder,
  outline,
  save_backbone,
)
from afspl_jax.models.t5 import t5
from afspl_jax.models.t5.config import T5Config
from tests.models.saved import T5S, change, problems, random_model

CLIP = ClipConfig(
  ClipVisionConfig(width=16, layers=1, heads=2, mlp_width=24, image_size=16, patch_size=8),
  ClipTextConfig(width=12, layers=1, heads=2, mlp_width=20, vocab_size=30, max_length=8, eos_id=29),
  joint_width=8,
)


def leaves(model: nnx.Module) -> dict:
  return {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(model))}


def assert_equal(left: nnx.Module, right: nnx.Module):
  left, right = leaves(left), leaves(right)
  assert set(left) == set(right)
  for path, leaf in left.items():
    np.testing.assert_array_equal(leaf, right[path], err_msg=str(path))


@pytest.mark.parametrize("name", T5S)
def test_t5_comes_back_as_it_was_saved(name, tmp_path):
  model = random_model(t5.T5, T5S[name])
  save_backbone(model, tmp_path)
  back = load_language_model(tmp_path)
  assert back.config == model.config
  assert_equal(back, model)


def test_clip_comes_back_as_it_was_saved(tmp_path):
  model = random_model(clip.Clip, CLIP)
  save_backbone(model, tmp_path)
  back = load_vision_encoder(tmp_path)
  assert back.config == CLIP
  assert_equal(back, model)


@pytest.mark.parametrize("name", T5S)
def test_transformers_reads_a_t5_that_we_saved(name, tmp_path, relative_error):
  model = random_model(t5.T5, T5S[name])
  save_backbone(model, tmp_path)
  reference = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
  ids, mask = np.arange(8, dtype=np.int32).reshape(2, 4), jnp.ones((2, 4), bool)
  encoded = model.encode(model.embed(jnp.asarray(ids)), mask)
  logits = model.logits(model.decode(jnp.asarray(ids), encoded, mask))
  ids = torch.from_numpy(ids).long()
  with torch.no_grad():
    expected = reference(input_ids=ids, decoder_input_ids=ids, use_cache=False).logits
  assert relative_error(logits, expected) < 1e-5


def test_transformers_reads_a_clip_that_we_saved(tmp_path, relative_error):
  model = random_model(clip.Clip, CLIP)
  save_backbone(model, tmp_path)
  reference = transformers.CLIPModel.from_pretrained(tmp_path).eval()
  assert reference.logit_scale.item() == float(model.logit_scale[...])
  pixels = np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)
  with torch.no_grad():
    expected = reference.get_image_features(torch.from_numpy(pixels)).pooler_output
  joint = model.encode_image(jnp.asarray(pixels.transpose(0, 2, 3, 1)))[1]
  assert relative_error(joint, expected) < 1e-5


def test_shards_of_transformers_load_as_one_file_does(tmp_path):
  torch.manual_seed(0)
  config = transformers.T5Config(
    vocab_size=30, d_model=12, d_kv=5, d_ff=20, num_layers=2, num_heads=2
  )
  reference = transformers.T5ForConditionalGeneration(config)
  reference.save_pretrained(tmp_path / "one")
  reference.save_pretrained(tmp_path / "many", max_shard_size="3KB")
  assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
  assert_equal(load_language_model(tmp_path / "many"), load_language_model(tmp_path / "one"))


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
@pytest.mark.parametrize("kept", ["float32", "bfloat16"])
def test_half_precision_files_load_and_come_back(source, tmp_path, stored, kept):
  narrow = np.dtype(getattr(ml_dtypes, stored, stored))
  graph, state = nnx.split(source)
  half = nnx.merge(graph, jax.tree.map(lambda x: x.astype(narrow), state))
  save_backbone(half, tmp_path)
  assert json.loads((tmp_path / "config.json").read_text())["dtype"] == stored
  back = leaves(load_language_model(tmp_path, param_dtype=jnp.dtype(kept)))
  for path, leaf in leaves(source).items():
    assert back[path].dtype == jnp.dtype(kept)
    np.testing.assert_array_equal(back[path], leaf.astype(narrow).astype(back[path].dtype))
  if stored == kept:
    save_backbone(load_language_model(tmp_path, param_dtype=jnp.dtype(kept)), tmp_path / "again")
    first, again = (load_file(x / "model.safetensors") for x in (tmp_path, tmp_path / "again"))
    assert all(again[key].tobytes() == first[key].tobytes() for key in first)


def test_compute_dtype_is_apart_from_the_parameters(folder):
  model = load_language_model(folder, dtype=jnp.bfloat16)
  assert {leaf.dtype for leaf in leaves(model).values()} == {np.dtype(np.float32)}
  assert model.embed(jnp.zeros((1, 2), jnp.int32)).dtype == jnp.bfloat16


def test_save_rejects_modules_of_unknown_architecture(tmp_path):
  with pytest.raises(TypeError, match=r"expected one of Clip, .*T5.*; got Linear"):
    save_backbone(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), tmp_path)


def test_duplicates_of_the_embedding_must_equal_it(source, folder):
  shared = load_file(folder / "model.safetensors")["shared.weight"]
  change(folder, encoder__embed_tokens__weight=shared, decoder__embed_tokens__weight=shared)
  assert_equal(load_backbone(folder), source)
  change(folder, decoder__embed_tokens__weight=shared + 1)
  message = problems(folder)
  assert 'expected "decoder.embed_tokens.weight" to equal "shared.weight"' in message
  assert "1 problem" in message


def test_a_duplicate_stands_in_for_the_embedding(source, folder):
  shared = load_file(folder / "model.safetensors")["shared.weight"]
  change(folder, shared__weight=None, encoder__embed_tokens__weight=shared)
  assert_equal(load_backbone(folder), source)


def test_a_head_that_equals_the_embedding_is_tied(tmp_path):
  save_backbone(random_model(t5.T5, T5S["v1.0"]), tmp_path)
  change(tmp_path, lm_head__weight=load_file(tmp_path / "model.safetensors")["shared.weight"])
  assert load_language_model(tmp_path).config == T5S["v1.0"]


def test_unused_keys_are_ignored(tmp_path):
  model = random_model(clip.Clip, CLIP)
  save_backbone(model, tmp_path / "clip")
  change(tmp_path / "clip", text_model__embeddings__position_ids=np.arange(8)[None])
  assert_equal(load_backbone(tmp_path / "clip"), model)
  unused = "decoder__block__0__layer__1__EncDecAttention__relative_attention_bias__weight"
  save_backbone(random_model(t5.T5, T5S["v1.0"]), tmp_path / "t5")
  change(tmp_path / "t5", **{unused: np.zeros((32, 2), np.float32)})
  load_backbone(tmp_path / "t5")


def test_shards_load(source, shards):
  assert_equal(load_backbone(shards), source)


def test_outline_takes_no_memory_at_any_size():
  config = T5Config(vocab_size=10**9, width=10**5, gated=True, activation="gelu_new")
  state = nnx.state(outline(t5.T5, config, param_dtype=jnp.bfloat16))
  leaves = jax.tree.leaves(state)
  assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
  assert sum(leaf.size for leaf in leaves) > 10**14


def test_importing_and_loading_needs_no_torch(folder):
  code = """
import pkgutil, sys
import afspl_jax.models
for module in pkgutil.walk_packages(afspl_jax.models.__path__, "afspl_jax.models."):
  __import__(module.name)
from afspl_jax.models.huggingface.weights import load_backbone
load_backbone(sys.argv[1])
print([name for name in ("torch", "transformers") if name in sys.modules])
"""
  command = [sys.executable, "-c", code, str(folder)]
  result = subprocess.run(command, capture_output=True, text=True, check=False)
  assert result.returncode == 0, result.stderr
  assert result.stdout.strip() == "[]"
