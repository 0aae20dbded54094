"""Readers of what is trained or downloaded: backbones, prompters, states, checkpoints and keys."""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.serialization
import gguf
import jax
import numpy as np
from flax import nnx
from PIL import Image
from safetensors.numpy import save_file

from afspl_jax.config.experiment import Experiment
from afspl_jax.federation.client.client_store import ClientStore
from afspl_jax.federation.secure.roster import read_roster
from afspl_jax.federation.transport import certificates, site_keys
from afspl_jax.models.clip.clip import Clip
from afspl_jax.models.huggingface import weights
from afspl_jax.models.huggingface.checkpoint_files import open_tensors, weight_files
from afspl_jax.models.huggingface.checkpoint_problems import BackboneError
from afspl_jax.models.huggingface.fingerprint import fingerprint
from afspl_jax.models.huggingface.gguf_folder import gguf_folder
from afspl_jax.models.huggingface.locate import TINY
from afspl_jax.models.huggingface.preprocessing import ImageProcessor, Tokenizer
from afspl_jax.models.t5.t5 import T5
from afspl_jax.runs.trained import prompter_file
from afspl_jax.storage.checkpoints import Checkpoints
from tests.conftest import CLIP, T5_CONFIG
from tests.fuzz.target import Target
from tests.models import gguf_llama

_LEAVES = {
  "own": {"prompt": np.ones((2, 3), np.float32), "scale": np.array(2, np.float32)},
  "residual": np.zeros(4, np.float32),
}


def _backbone(kind: str) -> Callable[[Path], None]:
  def make(folder: Path) -> None:
    rngs = nnx.Rngs(0)
    weights.save_backbone(
      Clip(CLIP, rngs=rngs) if kind == "clip" else T5(T5_CONFIG, rngs=rngs), folder
    )

  return make


def _sharded(folder: Path) -> None:
  tensors = {"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float16)}
  for i, (name, tensor) in enumerate(tensors.items()):
    save_file({name: tensor}, folder / f"shard-{i}.safetensors")
  save_file(tensors, folder.parent / f"{folder.name}-outside.safetensors")
  places = {"a": "shard-0.safetensors", "b": "shard-1.safetensors"}
  (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
  (folder / "config.json").write_text("{}")


def _flax(folder: Path) -> None:
  kernel, scale = np.ones((2, 3), np.float32), np.float16(2)
  data = flax.serialization.to_bytes({"a": {"kernel": kernel}, "b": {"scale": scale}})
  (folder / "flax_model.msgpack").write_bytes(data)
  (folder / "config.json").write_text("{}")


def _flax_parts(folder: Path) -> None:
  part = np.ones(3, np.float32)
  whole = {"__msgpack_chunked_array__": True, "shape": {"0": 2, "1": 3}}
  tree = {"a": {"kernel": whole | {"chunks": {"0": part, "1": part}}}}
  data = flax.serialization.msgpack_serialize(tree)
  (folder / "flax_model-1.msgpack").write_bytes(data)
  index = {"weight_map": {"a/kernel": "flax_model-1.msgpack"}}
  (folder / "flax_model.msgpack.index.json").write_text(json.dumps(index))
  (folder / "config.json").write_text("{}")


def _gguf(folder: Path) -> None:
  writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
  writer.add_uint32("llama.attention.head_count", 2)
  writer.add_array("tokenizer.ggml.tokens", ["a", "b c"])
  writer.add_array("tokenizer.ggml.token_type", [1, 3])
  for name, kind in {"blk.0.attn_q.weight": "Q8_0", "output.weight": "Q4_1", "x": "F16"}.items():
    raw_dtype = gguf.GGMLQuantizationType[kind]
    data = gguf.quants.quantize(np.ones((4, 32), np.float32), raw_dtype)
    writer.add_tensor(name, data, raw_dtype=raw_dtype)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  (folder / "config.json").write_text("{}")


def _whole_gguf(folder: Path) -> None:
  gguf_llama.write(folder / "whole.gguf", gguf_llama.weights(), "Q8_0")


def _read_gguf(folder: Path) -> None:
  made = gguf_folder(folder / "whole.gguf", folder / "made")
  _tensors(made)


def _tensors(folder: Path) -> None:
  """What loading does with tensors, whatever the model."""
  problems: list[str] = []
  found = open_tensors(folder, problems)
  for key in found or ():
    assert len(found.file(key)) > 0 and found.dtype(key) and found.shape(key) is not None
    if found.dtype(key) in ("F32", "F16", "BF16", "F64"):
      assert found[key].shape == found.shape(key)
  if found is None or found.lost:
    assert problems
  try:
    weight_files(folder)
  finally:
    fingerprint(folder)
  if problems:
    raise BackboneError(folder, problems)


def _processor(folder: Path) -> None:
  shutil.copy(TINY / "clip" / "preprocessor_config.json", folder)


def _process(folder: Path) -> None:
  processor = ImageProcessor(folder)
  pixels = processor([Image.new("RGB", (30, 20)), Image.new("L", (3, 90))])
  assert pixels.shape == (2, *processor.size, 3) and np.isfinite(pixels).all()


def _tokenizer(kind: str) -> Callable[[Path], None]:
  def make(folder: Path) -> None:
    for file in (TINY / kind).glob("*.json"):
      shutil.copy(file, folder)
    if kind == "clip":
      shutil.copy(TINY / kind / "merges.txt", folder)

  return make


def _tokenize(folder: Path) -> None:
  tokenizer = Tokenizer(folder)
  ids, mask = tokenizer.tokenize(["a red disc", ""], 16)
  assert ids.shape == mask.shape == (2, 16)
  tokenizer.decode(ids)


def _prompter(folder: Path) -> None:
  described = prompter_file.PrompterInfo(
    Experiment(), {"clip": "ab", "t5": "cd"}, 3, "", {"test": {"cider": 1.0}}
  )
  prompter_file.write_prompter(folder / "p.safetensors", described, _LEAVES, {})


def _read_prompter(folder: Path) -> None:
  file = folder / "p.safetensors"
  described = prompter_file.read_prompter_info(file)
  shapes = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), _LEAVES)
  shared, _ = prompter_file.read_prompter_leaves(file, described, shapes, {})
  assert jax.tree.structure(shared) == jax.tree.structure(_LEAVES)


def _state(folder: Path) -> None:
  ClientStore(folder / "clients").save("elm", 3, _LEAVES)


def _load_state(folder: Path) -> None:
  store = ClientStore(folder / "clients")
  for part in (False, True):
    found = store.load("elm", 9, _LEAVES, part=part)
    assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, _LEAVES)


@functools.cache
def _checkpoint() -> dict[str, bytes]:
  import tempfile

  with tempfile.TemporaryDirectory() as folder:
    checkpoints = Checkpoints(folder)
    checkpoints.save(3, _LEAVES)
    checkpoints.close()
    files = [file for file in sorted(Path(folder).rglob("*")) if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def _checkpointed(folder: Path) -> None:
  """All files of a checkpoint in one, so that any may be hostile."""
  parts = {name: data.decode("latin-1") for name, data in _checkpoint().items()}
  (folder / "files.json").write_text(json.dumps(parts))


def _restore(folder: Path) -> None:
  try:
    parts = json.loads((folder / "files.json").read_bytes())
    found = {n: p.encode("latin-1") for n, p in parts.items() if n in _checkpoint()}
  except (ValueError, AttributeError, RecursionError):
    return  # no folder, and so no input
  place = folder / "checkpoints"
  shutil.rmtree(place, ignore_errors=True)
  for name, data in found.items():
    (place / name).parent.mkdir(parents=True, exist_ok=True)
    (place / name).write_bytes(data)
  place.mkdir(exist_ok=True)
  for read_only in (False, True):
    checkpoints = Checkpoints(place, read_only=read_only)
    try:
      if restored := checkpoints.restore(_LEAVES):
        assert jax.tree.map(np.shape, restored[1]) == jax.tree.map(np.shape, _LEAVES)
    finally:
      checkpoints.close()


@functools.cache
def _keys() -> dict[str, bytes]:
  import tempfile

  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    certificates.make_tls_files(folder, [])
    site_keys.make_site_key(folder, "elm")
    site_keys.make_site_key(folder, "oak")
    both = (folder / "elm.pub").read_bytes() + (folder / "oak.pub").read_bytes()
    (folder / "roster.pub").write_bytes(both)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def key(file: str, read: Callable[[Path], Any]) -> Target:
  """A file of `afspl keys`."""

  def make(folder: Path) -> None:
    for name, data in _keys().items():
      (folder / name).write_bytes(data)
      (folder / name).chmod(0o600)

  return Target(make, file, read)


TARGETS = {
  "clip_config": Target(_backbone("clip"), "config.json", weights.load_backbone, cost=0.3),
  "t5_config": Target(_backbone("t5"), "config.json", weights.load_backbone, cost=0.3),
  "clip_weights": Target(_backbone("clip"), "model.safetensors", weights.load_backbone, cost=0.3),
  "safetensors": Target(_backbone("t5"), "model.safetensors", _tensors),
  "shards": Target(_sharded, "model.safetensors.index.json", _tensors),
  "flax_msgpack": Target(_flax, "flax_model.msgpack", _tensors),
  "flax_parts": Target(_flax_parts, "flax_model-1.msgpack", _tensors),
  "flax_shards": Target(_flax_parts, "flax_model.msgpack.index.json", _tensors),
  "gguf": Target(_gguf, "model.gguf", _tensors),
  "gguf_whole": Target(_whole_gguf, "whole.gguf", _read_gguf, cost=0.1),
  "preprocessor": Target(_processor, "preprocessor_config.json", _process),
  "tokenizer": Target(_tokenizer("t5"), "tokenizer.json", _tokenize, cost=0.1),
  "tokenizer_config": Target(_tokenizer("clip"), "tokenizer_config.json", _tokenize, cost=0.1),
  "tokenizer_model": Target(_tokenizer("clip"), "config.json", _tokenize, cost=0.1),
  "prompter": Target(_prompter, "p.safetensors", _read_prompter),
  "client_state": Target(_state, "clients/elm/round_000003.safetensors", _load_state),
  "checkpoint": Target(_checkpointed, "files.json", _restore, cost=0.3),
  "ca": key("ca.crt", lambda folder: certificates.read_ca(folder / "ca.crt")),
  "certificate": key("server.pem", certificates.read_tls_files),
  "server_key": key("server.key", certificates.read_tls_files),
  "site_key": key("elm.key", lambda folder: site_keys.check_site_key(folder / "elm.key")),
  "roster": key("roster.pub", lambda folder: read_roster(folder / "roster.pub")),
  "public_key": key("elm.pub", lambda folder: site_keys.read_public_key(folder / "elm.pub")),
}
