"""`afspl status` of run folders."""

import json

import pytest

from afspl_jax import cli
from afspl_jax.reporting.status import client_text
from afspl_jax.storage.run_folder import RunFolder


def line(round, client, status="ok", **more):
  fields = {"num_examples": 8, "loss": 0.5 / round, "bytes_up": 1_500_000, "seconds": 2.0}
  if status != "ok":
    fields = {"num_examples": None, "loss": None, "bytes_up": 0}
  return {"round": round, "client": client, **fields, "status": status, **more}


def train(round, seconds):
  sizes = {"bytes_up": 3_000_000, "bytes_down": 1_000_000}
  return {"round": round, "split": "train", "loss": 0.5, **sizes, "seconds": seconds, "clients": 2}


@pytest.fixture
def run(tmp_path):
  with RunFolder.open(tmp_path / "run", {"fed": {"rounds": 5}}) as folder:
    folder.append_clients([line(1, "Aachen"), line(1, "Bonn", "timeout: no reply within 9 s")])
    folder.append_clients([line(1, "Bonn", "late: discarded in round 2"), line(2, "Aachen")])
    folder.append_clients([line(2, "Bonn", "failed: not connected")])
    for entry in (train(1, 60.0), train(2, 4.0), train(3, 6.0)):
      folder.append_metrics(entry)
    folder.append_metrics({"round": 3, "split": "val", "cider": 1.25, "loss": None})
    yield folder


def status(folder, capsys):
  assert cli.main(["status", str(folder.path)]) == 0
  return capsys.readouterr().out.splitlines()


def test_a_running_run_shows_its_pace_scores_and_sites(run, capsys):
  head, loss, val, _, *table = status(run, capsys)
  assert head == (
    "running: round 3 of 5, 5.0 s per round after the first, 9.00 MB up and 3.00 MB down in total"
  )
  assert (loss, val) == ("train, round 3: loss 0.500", "val, round 3: cider 1.250")
  assert [row.split(maxsplit=6) for row in table] == [
    ["site", "ok", "missed", "seconds", "MB", "up", "loss  last"],
    ["Aachen", "2", "0", "2.0", "3.00", "0.250", "round 2: ok"],
    ["Bonn", "0", "2", "-", "0.00", "-", "round 2: failed: not connected"],
  ]


def test_a_stopped_run_and_a_finished_run(run, capsys):
  run.close()
  assert status(run, capsys)[0].startswith("stopped: round 3 of 5")
  with open(run.path / "metrics.jsonl", "a") as file:
    file.write(json.dumps({"round": 5, "split": "test", "cider": 2.0}) + "\n")
  lines = status(run, capsys)
  assert lines[0].startswith("finished: round 5 of 5") and "test, round 5: cider 2.000" in lines


def test_a_run_without_a_global_model_finishes_too(run, capsys):
  run.append_metrics({"round": 5, "split": "test_personal", "cider": 2.0})
  run.close()
  assert status(run, capsys)[0].startswith("finished: round 5 of 5")


def test_a_folder_that_is_not_a_run(tmp_path, capsys):
  assert cli.main(["status", str(tmp_path / "nothing")]) == 2
  assert "nothing: expected a run folder with config.json; got:" in capsys.readouterr().err


def test_the_line_of_a_client():
  assert client_text(line(2, "Aachen")) == "round 2  Aachen  ok  2.0 s  1500.0 kB up  loss 0.250"
  assert client_text(line(2, "Bonn", "failed: x")) == "round 2  Bonn  failed: x"
