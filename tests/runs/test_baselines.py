"""The baselines that a run trains beside its federation, as `fed.compare` asks for them."""

import functools
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tqdm import tqdm

from afspl_jax.config.experiment import Experiment
from afspl_jax.config.fields import changed
from afspl_jax.evaluation.generate import Evaluator
from afspl_jax.federation.client.local_trainer import LocalTrainer
from afspl_jax.runs.baselines import ALONE, POOLED, Baselines
from afspl_jax.storage.pytrees import named_leaves
from tests.recorded_run import recorded_run

SILENT = functools.partial(tqdm, disable=True)
SITES = 6  # in each round, of ten
SOME = {"fed.clients_per_round": SITES, "fed.cohort": 4}
CENTRAL = {
  "data.partition": "iid",
  "data.num_clients": 1,
  "fed.clients_per_round": 1,
  "uplink.select": "dense",
}
SMALL = {
  "prompter.routing": "none",
  "eval.val_examples": 4,
  "eval.common_examples": 4,
}


@pytest.fixture(scope="module")
def make(tmp_path_factory, tiny_checkpoints, shapes_dir):
  base = tmp_path_factory.getbasetemp() / "baselines"
  return lambda name, **fields: recorded_run(
    base / name, tiny_checkpoints, shapes_dir, **(SMALL | fields)
  )


@pytest.fixture(scope="module")
def run(make):
  """A federation whose method differs from the baselines in every way that it can."""
  return make("both", **SOME, **{"fed.compare": "both", "prompter.routing": "sites"})


@pytest.fixture(autouse=True)
def features(run, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(run.path.parent / "features"))


def scores(line: dict) -> dict:
  names = ("cider", "bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "exact_match")
  return {name: line[name] for name in names}


def states(folder: Path) -> dict[str, bytes]:
  files = folder.rglob("*.safetensors")
  return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def leaves(file: Path) -> dict[str, np.ndarray]:
  found = load_file(file)
  return {name.removeprefix("own/"): value for name, value in found.items()}


def test_training_alone_is_a_federation_that_shares_nothing(run, make):
  alone = make("alone", **SOME, **{"fed.share": "none", "prompter.local": False})
  assert states(run.path / ALONE) == states(alone.path / "clients")
  assert len(states(run.path / ALONE)) == 3 * SITES
  assert scores(run.line("test_alone")) == scores(alone.line("test_personal"))
  assert scores(run.line("test_alone")) != scores(run.line("test_personal"))
  expected = {line["client"]: line for line in alone.lines("sites.jsonl")}
  found = {line["client"]: line for line in run.lines("sites.jsonl")}
  assert found.keys() == expected.keys()
  for name, line in expected.items():
    for score in ("cider", "exact_match"):
      assert found[name][f"alone_{score}"] == line[f"personal_{score}"]


def test_pooled_is_one_client_that_has_all_data(run, make):
  size = SITES * run.config.optim.batch_size
  central = make("central", **CENTRAL, **{"optim.batch_size": size, "prompter.local": False})
  (file,) = (run.path / POOLED).rglob("round_000003.safetensors")
  trained, expected = leaves(file), named_leaves(central.checkpoint(3)["params"])
  assert trained.keys() == expected.keys()
  assert all((trained[name] == expected[name]).all() for name in trained)
  assert scores(run.line("test_pooled")) == scores(central.line("test"))
  by_site = [line["pooled_exact_match"] for line in run.lines("sites.jsonl")]
  assert len(by_site) == 10 and len(set(by_site)) > 1


def test_an_interrupted_run_repeats_one_round_and_ends_with_the_same_bits(run, tmp_path):
  folders = [run.path / name for name in (ALONE, POOLED)]
  whole = [states(folder) for folder in folders]
  files = [file for folder in folders for file in folder.rglob("*.safetensors")]
  before = {file: file.stat().st_mtime_ns for file in files}
  for folder in folders:  # as if killed while the last round was written
    sorted(folder.rglob("round_000003.safetensors"))[-1].unlink()
  run.setup.baselines.train(run.lines("clients.jsonl"), SILENT)
  assert [states(folder) for folder in folders] == whole
  again = {file for file, time in before.items() if file.stat().st_mtime_ns != time}
  assert {file.name for file in again} == {"round_000003.safetensors"}
  assert len(again) == SITES + 1


class Recording(LocalTrainer):
  """Trains nothing, and keeps in mind what it was asked for."""

  def __init__(self):
    self.rounds: list[tuple[int, list[int]]] = []

  def newest_round(self, client):
    return max((round for round, clients in self.rounds if client in clients), default=None)

  def train_cohort(self, shared, clients, round, first_step=None, *, control=None):
    self.rounds.append((round, list(clients)))
    return {}


def test_honest_sites_train_in_the_rounds_that_averaged_them_and_in_those_of_fine_tuning():
  statuses = {
    1: {"a": "ok", "b": "ok", "d": "ok"},
    2: {"a": "unused: this attempt at the round failed", "b": "failed: x", "c": "ok"},
  }
  lines = [
    {"round": round, "client": client, "status": status}
    for round, of in statuses.items()
    for client, status in of.items()
  ]
  config = changed(Experiment(), {"fed.rounds": 4, "fed.finetune": 2})
  trainers = {ALONE: Recording(), POOLED: Recording()}
  evaluator = object.__new__(Evaluator)
  Baselines(config, ["a", "b", "c"], ["a", "b", "c", "d", "e"], trainers, evaluator).train(
    lines, SILENT
  )
  assert trainers[ALONE].rounds == [(1, [0, 1]), (2, [2]), (3, [0, 1, 2]), (4, [0, 1, 2])]
  assert trainers[POOLED].rounds == [(1, [0]), (2, [0]), (3, [0]), (4, [0])]


def test_a_prompter_with_given_weights_keeps_those_of_its_other_sources(make):
  fields = {"prompter.fusion": "static", "prompter.fusion_weights": (0.5, 0.25, 0.25, 1.0)}
  run = make("given", **CENTRAL, **fields, **{"fed.rounds": 0, "fed.compare": "alone"})
  assert run.setup.baselines.config.prompter.fusion_weights == (0.5, 0.25, 0.25)
  assert run.setup.baselines.trainers.keys() == {ALONE}
  assert scores(run.line("test_alone")) == scores(run.line("test"))
