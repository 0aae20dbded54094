"""What is wrong with a checkpoint is named, all of it at once."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from afspl_jax.models.huggingface.weights import (
  BackboneError,
  fingerprint,
  load_backbone,
  load_vision_encoder,
  save_backbone,
)
from afspl_jax.models.t5.t5 import T5
from tests.models.saved import T5S, change, problems, random_model


def test_missing_folder_is_named(tmp_path):
  message = problems(tmp_path / "nowhere")
  assert "expected a folder here; got none" in message


def test_missing_config_is_named(folder):
  (folder / "config.json").unlink()
  assert "config.json: expected this file; got none" in problems(folder)


def test_broken_config_is_named(folder):
  (folder / "config.json").write_text("{")
  assert "config.json: expected JSON; got something else" in problems(folder)
  (folder / "config.json").write_text('{"model_type": "t5", "d_model": "wide"}')
  assert "\"d_model\" must be int; got 'wide'" in problems(folder)


def test_other_model_type_is_named(folder):
  expected = '"model_type" must be "clip" or "efficientnet_lite"; got \'t5\''
  with pytest.raises(BackboneError, match=expected):
    load_vision_encoder(folder)
  (folder / "config.json").write_text('{"model_type": "bert"}')
  known = " or ".join(
    f'"{name}"' for name in ("clip", "efficientnet_lite", "gpt2", "llama", "mt5", "t5")
  )
  assert f"\"model_type\" must be {known}; got 'bert'" in problems(folder)


def test_missing_weights_are_named(folder):
  (folder / "model.safetensors").unlink()
  assert (
    "expected one of model.safetensors, model.safetensors.index.json, flax_model.msgpack,"
    " flax_model.msgpack.index.json, model.gguf; got none"
  ) in problems(folder)


def test_pickle_is_never_opened(folder):
  (folder / "model.safetensors").unlink()
  (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
  message = problems(folder)
  assert "got only pytorch_model.bin, a pickle" in message
  assert "Convert it to safetensors" in message


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "flax_model.msgpack"])
def test_a_file_of_another_format_is_named(folder, name):
  wanted = {
    "config.json": "JSON",
    "model.safetensors": "a safetensors file",
    "flax_model.msgpack": "a Flax msgpack file",
  }[name]
  if name == "flax_model.msgpack":
    (folder / "model.safetensors").unlink()
  for content, end in (
    (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer. Download the complete"),
    (b"<!doctype html><title>Sign in", "an HTML page. Download the complete"),
    (b"PK\x03\x04archive/data.pkl", "a ZIP archive. Take the file of the checkpoint, or convert"),
    (b"GGUF\x03\0\0\0", "a GGUF file. Take the file of the checkpoint, or convert"),
  ):
    (folder / name).write_bytes(content)
    assert f"{name}: expected {wanted}; got {end}" in problems(folder)


@pytest.mark.parametrize("cut", [0, 5, 1000, -1])
def test_truncated_file_is_named(folder, cut):
  path = folder / "model.safetensors"
  path.write_bytes(path.read_bytes()[:cut])
  message = problems(folder)
  assert (
    f"model.safetensors: expected a complete safetensors file; got {path.stat().st_size} bytes"
    in (message)
  )


def test_unmatched_and_missing_keys_and_shapes_are_named(folder):
  change(
    folder,
    extra__weight=np.zeros(2, np.float32),
    encoder__final_layer_norm__weight=None,
    decoder__final_layer_norm__weight=np.zeros((7,), np.float32),
    encoder__block__0__layer__0__SelfAttention__q__weight=np.zeros((10, 12), np.int8),
  )
  message = problems(folder)
  assert "4 problems" in message
  assert 'got "extra.weight"' in message
  assert 'expected "encoder.final_layer_norm.weight"' in message
  assert '"decoder.final_layer_norm.weight" of shape (12,); got (7,)' in message
  assert "got I8. Take a checkpoint that is not quantised" in message


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf, 1e30, -1e30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_one_impossible_weight_is_named(folder, value, dtype):
  held = {key: x.astype(dtype) for key, x in load_file(folder / "model.safetensors").items()}
  save_file(held, folder / "model.safetensors")
  load_backbone(folder)
  spoiled = held["lm_head.weight"]
  with np.errstate(over="ignore"):  # 1e30 is infinite in float16
    spoiled[7, 3] = value
  save_file(held, folder / "model.safetensors")
  message = problems(folder)
  assert "1 problem in" in message and ' in "lm_head.weight"; got ' in message
  assert message.endswith(f"got {float(spoiled[7, 3]):g}. Download the file again.")
  spoiled[0, :2] = np.inf, -5e4  # which is possible
  held["encoder.final_layer_norm.weight"][-1] = np.nan
  save_file(held, folder / "model.safetensors")
  message = problems(folder)
  assert "2 problems in" in message and "got inf and 1 more. Download" in message
  assert ' in "encoder.final_layer_norm.weight"; got nan. Download' in message


def test_a_double_just_above_the_largest_is_named(folder):
  values = np.array([1.0] * 11 + [1e6 + 1e-3])  # 1e6 in float32
  change(folder, decoder__final_layer_norm__weight=values)
  assert ' in "decoder.final_layer_norm.weight"; got 1e+06. Download' in problems(folder)


def test_large_and_tiny_weights_are_accepted(folder):
  for values in ([1e6, -1e6, 65504, 0.0], [1e-45, -1e-45, -0.0, 1e-30]):
    change(folder, decoder__final_layer_norm__weight=np.array(values * 3, np.float32))
    load_backbone(folder)


def test_a_nan_in_an_embedding_that_is_stored_twice_is_named(tmp_path):
  save_backbone(random_model(T5, T5S["v1.0"]), tmp_path)
  held = load_file(tmp_path / "model.safetensors")
  held["shared.weight"][2, 2] = np.nan
  change(
    tmp_path,
    shared__weight=held["shared.weight"],
    encoder__embed_tokens__weight=held["shared.weight"],
  )
  message = problems(tmp_path)
  assert 'numbers of at most 1e+06 in "shared.weight"; got nan' in message
  assert "to equal" not in message


def test_missing_shard_is_named_once(shards):
  (shards / "model-00002-of-00003.safetensors").unlink()
  message = problems(shards)
  assert "1 problem in" in message
  assert "model-00002-of-00003.safetensors: expected this file; got none" in message
  with pytest.raises(BackboneError, match="model-00002-of-00003"):
    fingerprint(shards)


def test_broken_index_is_named(shards):
  path = shards / "model.safetensors.index.json"
  index = json.loads(path.read_text())
  index["weight_map"]["nowhere.weight"] = "model-00001-of-00003.safetensors"
  path.write_text(json.dumps(index))
  assert 'expected "nowhere.weight" in model-00001-of-00003.safetensors' in problems(shards)
  for places in ({"shared.weight": "../other.safetensors"}, ["shared.weight"], None):
    path.write_text(json.dumps({"weight_map": places}))
    assert 'expected a "weight_map" from keys to names of files' in problems(shards)


def test_all_problems_are_named_at_once(shards):
  (shards / "model-00001-of-00003.safetensors").unlink()
  (shards / "model-00002-of-00003.safetensors").write_bytes(b"short")
  third = "model-00003-of-00003.safetensors"
  held = load_file(shards / third)
  first, second = sorted(held)[:2]
  change(shards, third, **{first: None, second: np.zeros(3, np.float32)})
  index = json.loads((shards / "model.safetensors.index.json").read_text())
  index["weight_map"]["extra.weight"] = third
  (shards / "model.safetensors.index.json").write_text(json.dumps(index))
  change(shards, third, extra__weight=np.zeros(1, np.float32))
  message = problems(shards)
  assert "5 problems" in message
  for part in (
    "model-00001-of-00003.safetensors: expected this file; got none",
    "model-00002-of-00003.safetensors: expected a complete safetensors file; got 5 bytes",
    f'expected "{first}" in {third}; got no such tensor there',
    f'{third}: expected "{second}" of shape',
    f'{third}: expected only keys that the config.json requires; got "extra.weight"',
  ):
    assert part in message
