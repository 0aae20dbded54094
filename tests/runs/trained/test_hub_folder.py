"""A trained prompter as a repository of the hub: written, and loaded from a folder or by name."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from huggingface_hub import ModelCard, constants

from afspl_jax.cli import main
from afspl_jax.config.experiment import Experiment
from afspl_jax.config.fields import changed
from afspl_jax.errors import UserError
from afspl_jax.runs.trained.hub_folder import privacy_statement, write_hub_folder
from afspl_jax.runs.trained.trained_prompter import open_trained_prompter
from tests.hub_server import serve
from tests.recorded_run import rich_run


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_checkpoints, shapes_dir):
  return rich_run(tmp_path_factory.getbasetemp(), tiny_checkpoints, shapes_dir)


@pytest.fixture(scope="module")
def folders(run):
  return {kind: getattr(run.config.backbone, kind) for kind in ("clip", "t5")}


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
  """The folder of hub/owner/prompter, written by the command."""
  folder = tmp_path_factory.mktemp("hub") / "owner" / "prompter"
  assert main(["export", str(run.path), str(folder), "--hub"]) == 0
  return folder


def same(a, b) -> bool:
  return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b))


def test_a_folder_has_what_the_hub_expects(run, exported):
  assert sorted(file.name for file in exported.iterdir()) == [
    "README.md",
    "config.json",
    "model.safetensors",
  ]
  settings = json.loads((exported / "config.json").read_text())
  assert settings["model_type"] == "afspl_jax" and settings["round"] == 3
  card = ModelCard.load(exported / "README.md", repo_type="model")
  assert card.data.library_name == "afspl_jax" and card.data.pipeline_tag == "image-to-text"
  scored = {
    (one.dataset_split, one.metric_type): one.metric_value for one in card.data.eval_results
  }
  line = run.line("test")
  assert scored["test", "cider"] == round(line["cider"], 6)
  assert f"| test | cider | {line['cider']:.4f} |" in card.text
  assert "`shapes`" in card.text and "without differential privacy" in card.text


def test_nothing_of_a_site_or_this_machine_is_in_the_folder(run, exported):
  (run_sites,) = [sorted(run.setup.clients["train"])]
  for file in exported.iterdir():
    data = file.read_bytes()
    assert str(run.path.parent).encode() not in data
    assert not any(f'"{site}"'.encode() in data for site in run_sites)


def test_a_folder_and_a_name_open_as_the_run_does(run, exported, folders, monkeypatch, tmp_path):
  own = open_trained_prompter(run.path)
  found = open_trained_prompter(exported, folders=folders)
  assert same(found.shared, own.shared) and found.scores == own.scores
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
  with pytest.raises(UserError, match=r"a repository of the hub; got .* HF_HUB_OFFLINE or"):
    open_trained_prompter(Path("owner/prompter"), folders=folders)
  monkeypatch.delenv("HF_HUB_OFFLINE")
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
  with serve(exported.parents[1]) as hub:
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    for _ in range(2):
      path = Path("owner/prompter")
      assert same(open_trained_prompter(path, folders=folders).shared, own.shared)
    assert [name for method, name, _ in hub.asked if method == "GET"] == ["model.safetensors"]


def test_a_misspelt_run_is_not_asked_for(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "runs").mkdir()
  monkeypatch.delenv("HF_HUB_OFFLINE")
  with pytest.raises(UserError, match="expected the folder of a run that started"):
    open_trained_prompter(Path("runs/shapse"))


def test_a_local_prompt_and_other_files_are_rejected(run, tmp_path, exported):
  with pytest.raises(UserError, match="a local prompt stays at its site"):
    write_hub_folder(open_trained_prompter(run.path)._replace(site="elm"), tmp_path / "x")
  assert not (tmp_path / "x").exists()
  shutil.copytree(exported, tmp_path / "y")
  trained = open_trained_prompter(run.path)
  write_hub_folder(trained, tmp_path / "y")
  (tmp_path / "y" / "notes.txt").touch()
  with pytest.raises(UserError, match=r"expected an empty folder; got notes\.txt"):
    write_hub_folder(trained, tmp_path / "y")


@pytest.mark.parametrize(
  "settings, wanted",
  [
    ({}, ["without differential privacy", "Local prompts stayed"]),
    (
      {"privacy.dp": "central", "privacy.epsilon": 8.0, "privacy.delta": 1e-6},
      ["the server adds the noise, with a budget of ε = 8 at δ = 1e-06"],
    ),
    ({"privacy.dp": "local", "privacy.noise": 1.0}, ["each client adds", "no fixed budget"]),
    ({"privacy.example_clip": 1.0, "privacy.example_epsilon": 3.0}, ["DP-SGD", "ε = 3 for each"]),
    ({"secure.aggregation": True}, ["no single update"]),
  ],
)
def test_the_privacy_statement_follows_the_settings(settings, wanted):
  text = "\n".join(privacy_statement(changed(Experiment(), settings)))
  assert all(part in text for part in wanted), text
  assert ("Secure aggregation" in text) == ("secure.aggregation" in settings)
