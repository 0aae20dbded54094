"""Checkpoints from the hub, through huggingface_hub and a local server that speaks its protocol."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from afspl_jax.models.huggingface import hub as hub_module
from afspl_jax.models.huggingface.fingerprint import fingerprint
from afspl_jax.models.huggingface.locate import MissingBackbone, locate
from afspl_jax.models.huggingface.weights import load_language_model, save_backbone
from tests.hub_server import COMMIT, serve
from tests.models.test_flax_msgpack import WRITTEN, shard

NAME = "google/flan-t5-base"
SMALL = ("config.json", "spiece.model", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture
def hub(tmp_path, monkeypatch):
  """A hub with one T5 in msgpack, and files that are never fetched."""
  folder = tmp_path / "hub" / NAME
  folder.mkdir(parents=True)
  for file in ("config.json", "flax_model.msgpack"):
    shutil.copy(WRITTEN / "t5" / file, folder)
  for file in SMALL[1:]:
    (folder / file).write_text("{}")
  (folder / "pytorch_model.bin").write_bytes(b"\x80\x02pickle")
  (folder / "modeling.py").write_text("raise SystemExit")
  (folder / "README.md").write_text("a card")
  monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
  with serve(tmp_path / "hub") as server:
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
      constants,
      "HUGGINGFACE_CO_URL_TEMPLATE",
      server.url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    yield server


def downloads(server) -> list[str]:
  return [name for method, name, _ in server.asked if method == "GET"]


def test_what_is_missing_is_told_and_fetched_without_pickle_or_code(hub, capsys):
  folder = locate(NAME, "t5")
  assert sorted(file.name for file in folder.iterdir()) == sorted((*SMALL, "flax_model.msgpack"))
  assert downloads(hub)[-1] == "flax_model.msgpack"  # last, so that it says that all is there
  told = capsys.readouterr().err
  assert f"fetching {NAME}, 0.01 MB, into {constants.HF_HUB_CACHE}: config.json (0.00 MB)" in told
  load_language_model(folder)
  hub.asked.clear()
  assert locate(NAME, "t5") == folder and not hub.asked
  assert "fetching" not in capsys.readouterr().err


def test_safetensors_is_fetched_rather_than_msgpack(hub, source):
  save_backbone(source, hub.folder / NAME)
  names = {file.name for file in locate(NAME, "t5").iterdir()}
  assert "model.safetensors" in names and "flax_model.msgpack" not in names


def test_shards_are_fetched_after_their_index(hub, tmp_path):
  (hub.folder / NAME / "flax_model.msgpack").unlink()
  shards = shard(hub.folder / NAME)
  folder = locate(NAME, "t5")
  assert downloads(hub)[-4:] == ["flax_model.msgpack.index.json", *shards]
  load_language_model(folder)


def test_the_fingerprint_is_that_of_a_whole_copy(hub):
  assert fingerprint(locate(NAME, "t5")) == fingerprint(hub.folder / NAME)


def test_a_broken_download_goes_on_where_it_stopped(hub, monkeypatch):
  monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what is written at once
  hub.cut["flax_model.msgpack"] = 5000
  folder = locate(NAME, "t5")  # huggingface_hub itself asks for the rest
  ranges = [range_ for method, name, range_ in hub.asked if (method, name[:4]) == ("GET", "flax")]
  assert ranges[0] == "" and ranges[1].startswith("bytes=5000-"), ranges
  assert fingerprint(folder) == fingerprint(hub.folder / NAME)


def test_a_fetch_that_was_ended_goes_on_in_the_next_run(hub, monkeypatch):
  import huggingface_hub

  real = huggingface_hub.hf_hub_download

  def ended(name, file, **options):
    if file == "flax_model.msgpack":
      raise KeyboardInterrupt
    return real(name, file, **options)

  monkeypatch.setattr(huggingface_hub, "hf_hub_download", ended)
  with pytest.raises(KeyboardInterrupt):
    locate(NAME, "t5")
  monkeypatch.setattr(huggingface_hub, "hf_hub_download", real)
  hub.asked.clear()
  load_language_model(locate(NAME, "t5"))
  assert downloads(hub) == ["flax_model.msgpack"]


@pytest.mark.parametrize("name", ["flax_model.msgpack", "config.json"])
def test_other_bytes_than_stated_are_deleted(hub, name):
  hub.wrong.add(name)
  with pytest.raises(MissingBackbone, match=rf"backbone.t5: {name}: expected \d+ bytes with"):
    locate(NAME, "t5")
  hub.wrong.clear()
  folder = locate(NAME, "t5")
  assert fingerprint(folder) == fingerprint(hub.folder / NAME)


def test_a_repository_of_pickles_is_rejected_before_anything_is_fetched(hub):
  (hub.folder / NAME / "flax_model.msgpack").unlink()
  with pytest.raises(MissingBackbone, match=r"got .*pytorch_model.bin.* A pickle is never fetched"):
    locate(NAME, "t5")
  assert not hub.asked


def test_an_unknown_repository_is_named(hub):
  with pytest.raises(MissingBackbone, match=r"backbone\.t5: google/nothing: expected a repository"):
    locate("google/nothing", "t5")


def test_without_room_nothing_is_fetched(hub, monkeypatch):
  monkeypatch.setattr(
    hub_module.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0)
  )
  with pytest.raises(MissingBackbone, match=r"expected 0.01 MB of space in .*; got 0.00 MB. Free"):
    locate(NAME, "t5")
  assert not hub.asked


@pytest.mark.parametrize("how", ["variable", "constant"])
def test_offline_the_command_is_told_and_nobody_is_asked(hub, monkeypatch, how):
  if how == "variable":
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  else:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  with pytest.raises(MissingBackbone) as error:
    locate(NAME, "t5")
  assert f"\n  With network access: hf download {NAME}\n" in str(error.value)
  assert "--config.backbone.t5=FOLDER" in str(error.value) and not hub.asked


def test_a_server_that_does_not_answer_is_told(hub, monkeypatch):
  monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
  with pytest.raises(MissingBackbone, match="the hub did not answer") as error:
    locate(NAME, "t5")
  assert f"hf download {NAME}\n" in str(error.value)


def test_a_name_that_is_none_is_not_asked_for(hub):
  with pytest.raises(MissingBackbone, match="it is no name of a repository"):
    locate("not/a/name", "t5")
  assert not hub.asked


def test_the_server_states_what_the_hub_states(hub):
  info = hub.info(NAME)
  files = {one["rfilename"]: one for one in info["siblings"]}
  data = (hub.folder / NAME / "config.json").read_bytes()
  assert json.loads(data) and info["sha"] == COMMIT
  assert files["config.json"]["blobId"] == (
    hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
  )
  weights = Path(hub.folder / NAME / "flax_model.msgpack").read_bytes()
  assert files["flax_model.msgpack"]["lfs"]["sha256"] == hashlib.sha256(weights).hexdigest()


def test_no_other_module_fetches_anything():
  package = Path(hub_module.__file__).parents[2]
  names = ("hf_hub_download", "snapshot_download", "HfApi", "HfFileSystem")
  fetch = {
    str(file.relative_to(package))
    for file in package.rglob("*.py")
    if any(name in file.read_text(encoding="utf-8") for name in names)
  }
  assert fetch == {"models/huggingface/hub.py"}
