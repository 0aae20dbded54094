"""A run whose backbones lie on the hub, in the only form that older repositories have: msgpack."""

import shutil
from pathlib import Path

import flax.serialization
import jax
import numpy as np
import pytest
from flax import traverse_util
from huggingface_hub import constants
from safetensors.numpy import load_file

from afspl_jax.config.experiment import Experiment
from afspl_jax.config.fields import changed
from afspl_jax.errors import UserError
from afspl_jax.models.captioner import module_leaves
from afspl_jax.models.huggingface.fingerprint import fingerprint
from afspl_jax.runs.frozen import load_pair
from afspl_jax.runs.prepare import find_inputs
from tests.hub_server import serve

EMBEDDINGS = ("shared", "token_embedding", "position_embedding", "relative_attention_bias")


def as_msgpack(checkpoint: Path, folder: Path) -> None:
  """A copy of a checkpoint in the form that transformers' Flax models wrote."""
  shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors"))
  tree = {}
  for key, tensor in load_file(checkpoint / "model.safetensors").items():
    *modules, last = key.split(".")
    if last == "weight" and modules[-1] in EMBEDDINGS:
      last = "embedding"
    elif last == "weight" and tensor.ndim == 4:
      last, tensor = "kernel", tensor.transpose(2, 3, 1, 0)
    elif last == "weight" and tensor.ndim == 2:
      last, tensor = "kernel", tensor.T
    elif last == "weight" and "model" in modules[0]:  # of CLIP; T5's Flax norms have a "weight"
      last = "scale"
    tree[*modules, last] = np.ascontiguousarray(tensor).reshape(tensor.shape)
  data = flax.serialization.to_bytes(traverse_util.unflatten_dict(tree))
  (folder / "flax_model.msgpack").write_bytes(data)


def test_a_run_fetches_msgpack_from_the_hub_and_has_the_networks_of_the_folders(
  tiny_checkpoints, shapes_dir, tmp_path, monkeypatch
):
  named = {"clip": "openai/clip", "t5": "google/t5"}
  for kind, name in named.items():
    as_msgpack(getattr(tiny_checkpoints, kind), tmp_path / "hub" / name)
  monkeypatch.chdir(tmp_path)
  monkeypatch.delenv("HF_HUB_OFFLINE")
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
  fields = {f"backbone.{kind}": name for kind, name in named.items()}
  config = changed(Experiment(), fields | {"data.dir": str(shapes_dir)})
  lost = changed(config, {"data.source": "folder", "data.dir": str(tmp_path / "nothing")})
  with serve(tmp_path / "hub") as hub:
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    with pytest.raises(UserError, match=r"(?s)files that are missing.*hf download google/t5"):
      find_inputs(lost)
    assert not hub.asked  # nothing is fetched for a run that cannot start
    folders = find_inputs(config).folders
  assert [name for method, name, _ in hub.asked if method == "GET" and "flax" in name] == [
    "flax_model.msgpack"
  ] * 2
  fetched = load_pair(config, folders)
  local = load_pair(config, {kind: getattr(tiny_checkpoints, kind) for kind in named})
  for frozen in (lambda pair: module_leaves(pair.language_model), lambda pair: pair.encoder._state):
    jax.tree.map(np.testing.assert_array_equal, frozen(fetched), frozen(local))
  assert fetched.processing() == local.processing()
  assert fetched.fingerprints == {
    kind: fingerprint(tmp_path / "hub" / name) for kind, name in named.items()
  }
