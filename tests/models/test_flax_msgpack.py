"""`flax_model.msgpack` of transformers' former Flax models, against what those models wrote."""

import json
import shutil
import struct
from pathlib import Path

import flax.serialization
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from flax import nnx, traverse_util
from safetensors.numpy import load_file, save_file

from afspl_jax.models.huggingface.flax_msgpack import FlaxFile, torch_key
from afspl_jax.models.huggingface.weights import (
  fingerprint,
  load_backbone,
  load_language_model,
  load_vision_encoder,
)
from tests.models.saved import problems

WRITTEN = Path(__file__).parent / "flax"
NAMES = ("clip", "t5", "t5-tied")


def flax_tree(name: str) -> dict:
  data = (WRITTEN / name / "flax_model.msgpack").read_bytes()
  return flax.serialization.msgpack_restore(data)


def write(folder: Path, tree: dict, name: str = "flax_model.msgpack") -> Path:
  (folder / name).write_bytes(flax.serialization.to_bytes(tree))
  return folder / name


@pytest.fixture
def t5(tmp_path) -> Path:
  """A folder with config.json alone."""
  shutil.copy(WRITTEN / "t5" / "config.json", tmp_path)
  return tmp_path


def leaves(folder: Path) -> dict:
  state = nnx.to_flat_state(nnx.state(load_backbone(folder)))
  return {path: np.asarray(leaf[...]) for path, leaf in state}


def assert_same_bits(left: dict, right: dict):
  assert left.keys() == right.keys()
  for path, leaf in left.items():
    assert leaf.tobytes() == right[path].tobytes() and leaf.shape == right[path].shape, path


@pytest.mark.parametrize("name", ["t5", "t5-tied"])
def test_logits_are_those_of_the_flax_t5(name, relative_error):
  model, golden = (
    load_language_model(WRITTEN / name),
    load_file(WRITTEN / name / "outputs.safetensors"),
  )
  mask = jnp.ones(golden["ids"].shape, bool)
  encoded = model.encode(model.embed(jnp.asarray(golden["ids"])), mask)
  logits = model.logits(model.decode(jnp.asarray(golden["decoder_ids"]), encoded, mask))
  assert relative_error(logits, golden["logits"]) < 1e-5


def test_features_are_those_of_the_flax_clip(relative_error):
  model, golden = (
    load_vision_encoder(WRITTEN / "clip"),
    load_file(WRITTEN / "clip" / "outputs.safetensors"),
  )
  tokens, joint = model.encode_image(jnp.asarray(golden["pixels"]))
  assert relative_error(tokens, golden["tokens"]) < 1e-5
  assert relative_error(joint, golden["image"]) < 1e-5
  ids = golden["ids"]
  mask = np.arange(ids.shape[1]) <= (ids == 19).argmax(axis=1)[:, None]
  text = model.encode_text(jnp.asarray(ids), jnp.asarray(mask))
  assert relative_error(text, golden["text"]) < 1e-5


@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_msgpack_and_safetensors_give_the_same_bits(name, dtype, tmp_path):
  tree = traverse_util.flatten_dict(flax_tree(name))
  tensors = {}
  for path, array in tree.items():
    array = tree[path] = np.asarray(array).astype(dtype)
    if path[-1] == "kernel":
      array = np.moveaxis(array, (-1, -2), (0, 1))
    last = path[-1] if path[-1] in ("bias", "class_embedding", "logit_scale") else "weight"
    tensors[".".join([*path[:-1], last])] = np.asarray(array, order="C")
  for form in ("msgpack", "safetensors"):
    (tmp_path / form).mkdir()
    shutil.copy(WRITTEN / name / "config.json", tmp_path / form)
  write(tmp_path / "msgpack", traverse_util.unflatten_dict(tree))
  save_file(tensors, tmp_path / "safetensors" / "model.safetensors")
  assert_same_bits(leaves(tmp_path / "msgpack"), leaves(tmp_path / "safetensors"))


def shard(folder: Path) -> list[str]:
  """As transformers' `flax_shard_checkpoint`."""
  tree = traverse_util.flatten_dict(flax_tree("t5"), sep="/")
  names = [f"flax_model-0000{i + 1}-of-00003.msgpack" for i in range(3)]
  places = {key: names[i % 3] for i, key in enumerate(tree)}
  for name in names:
    part = {key: tree[key] for key in places if places[key] == name}
    write(folder, traverse_util.unflatten_dict(part, sep="/"), name)
  index = {"metadata": {"total_size": 1}, "weight_map": places}
  (folder / "flax_model.msgpack.index.json").write_text(json.dumps(index))
  return names


def test_shards_load_as_one_file_does(t5):
  names = shard(t5)
  assert_same_bits(leaves(t5), leaves(WRITTEN / "t5"))
  before = fingerprint(t5)
  write(t5, flax_tree("t5"), names[2])
  assert fingerprint(t5) != before


def test_all_problems_of_shards_are_named_at_once(t5):
  first, second, third = shard(t5)
  (t5 / first).unlink()
  (t5 / second).write_bytes((t5 / second).read_bytes()[:-1])
  tree = traverse_util.flatten_dict(flax.serialization.msgpack_restore((t5 / third).read_bytes()))
  lost, changed = [path for path in tree if path[-1] == "kernel"][:2]
  del tree[lost]
  tree[changed] = np.zeros((3, 2), np.float32)
  tree["extra", "kernel"] = np.zeros((3, 2), np.float32)
  write(t5, traverse_util.unflatten_dict(tree), third)
  index = json.loads((t5 / "flax_model.msgpack.index.json").read_text())
  index["weight_map"]["extra/kernel"] = third
  (t5 / "flax_model.msgpack.index.json").write_text(json.dumps(index))
  message = problems(t5)
  assert "5 problems" in message
  for part in (
    f"{first}: expected this file; got none",
    f"{second}: expected a complete Flax msgpack file; got ",
    f'index.json: expected "{"/".join(lost)}" in {third}; got no such tensor there',
    f'{third}: expected "{torch_key("/".join(changed))}" of shape',
    f'{third}: expected only keys that the config.json requires; got "extra.weight"',
  ):
    assert part in message


def test_an_array_in_several_parts_is_one(t5, monkeypatch):
  monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 64)
  tree = flax_tree("t5")
  data = flax.serialization.to_bytes(tree)
  assert data.count(b"__msgpack_chunked_array__") > 20
  (t5 / "flax_model.msgpack").write_bytes(data)
  assert_same_bits(leaves(t5), leaves(WRITTEN / "t5"))


def test_safetensors_beside_msgpack_is_read(t5, source):
  from afspl_jax.models.huggingface.weights import save_backbone

  save_backbone(source, t5)
  before = leaves(t5)
  (t5 / "flax_model.msgpack").write_bytes(b"damaged")
  assert_same_bits(leaves(t5), before)


def array(shape, dtype: str, data: bytes, kind: int = 1) -> msgpack.ExtType:
  return msgpack.ExtType(kind, msgpack.packb((shape, dtype, data)))


DEEP: object = array((1,), "uint8", b"0")
for _ in range(17):
  DEEP = {"a": DEEP}
FLAT = array((4,), "uint8", b"0123")
PARTS = {"__msgpack_chunked_array__": True, "shape": {"0": 2, "1": 4}, "chunks": {"0": FLAT}}


@pytest.mark.parametrize(
  "content, problem",
  [
    ({"a": 1.5}, "byte 0xcb"),
    ({"a": None}, "byte 0xc0"),
    ({"a": [FLAT]}, "byte 0x91"),
    ({"a": b"raw"}, "byte 0xc4"),
    ({"a": 7}, "7 at 'a', where an array must be"),
    ({"a": True}, "True at 'a', where an array must be"),
    ({1: FLAT}, "byte 0x01"),
    ({"a" * 201: FLAT}, "a name of 201 bytes"),
    (FLAT, "no map at its beginning"),
    (DEEP, "more than 16 maps"),
    ({"a": msgpack.ExtType(2, msgpack.packb((1.0, 2.0)))}, "extension type 2"),
    ({"a": msgpack.ExtType(5, b"cos\nsystem")}, "extension type 5"),
    ({"a": array((1,), "object", b"12345678")}, "type 'object'"),
    ({"a": array((1,), "<V8", b"12345678")}, "type '<V8'"),
    ({"a": array((3,), "float32", b"0" * 8)}, "8 bytes for an array of shape (3,)"),
    ({"a": array((10**6, 10**6, 10**6), "float32", b"")}, "0 bytes for an array"),
    ({"a": array((1,) * 9, "uint8", b"0")}, "an array of 9 axes"),
    ({"a": array((-1,), "uint8", b"")}, "byte 0xff"),
    ({"a": msgpack.ExtType(1, msgpack.packb(((1,), "uint8")))}, "without shape, type and bytes"),
    ({"a": PARTS}, "parts that do not make one array at 'a'"),
    ({"a": PARTS | {"chunks": {"0": FLAT, "2": FLAT}}}, "parts that do not make one array"),
    ({"a": {"kernel": FLAT, "embedding": FLAT}}, "'a.weight' twice"),
    ({f"{i}": FLAT for i in range((1 << 16) + 1)}, "65536 names"),
  ],
)
def test_other_content_is_rejected(content, problem, tmp_path):
  file = tmp_path / "x.msgpack"
  file.write_bytes(msgpack.packb(content))
  with pytest.raises(ValueError) as error:
    FlaxFile(file)
  assert problem in str(error.value)


def test_every_truncation_and_any_bytes_after_the_end_are_rejected(tmp_path):
  whole = flax.serialization.to_bytes(
    {"a": {"kernel": np.ones((2, 3), np.float32), "b": np.float32(2)}}
  )
  file = tmp_path / "x.msgpack"
  file.write_bytes(whole)
  assert {key: FlaxFile(file).tensor(key).shape for key in FlaxFile(file).keys()} == {  # noqa: SIM118
    "a.weight": (3, 2),
    "a.b": (),
  }
  for data in [*(whole[:end] for end in range(len(whole))), whole + b"\0"]:
    file.write_bytes(data)
    with pytest.raises(ValueError):
      FlaxFile(file)


def test_a_name_twice_in_one_map_is_rejected(tmp_path):
  one = msgpack.packb({"a": FLAT})
  (tmp_path / "x").write_bytes(b"\x82" + one[1:] * 2)
  with pytest.raises(ValueError, match="'a' twice in one map"):
    FlaxFile(tmp_path / "x")


@pytest.mark.parametrize("head", [b"\xdf", b"\xdb", b"\x81\xa1a\xc9", b"\x81\xa1a\xdf"])
def test_a_size_of_gigabytes_is_rejected(tmp_path, head):
  (tmp_path / "x").write_bytes(head + struct.pack(">I", 2**32 - 1) + b"\x01" * 20)
  with pytest.raises(ValueError):
    FlaxFile(tmp_path / "x")
