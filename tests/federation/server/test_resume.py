import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory):
  base = tmp_path_factory.mktemp("runs")
  env = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
  }
  command = [sys.executable, str(HERE / "killed_run.py"), str(base), "0"]
  done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  return base, json.loads(done.stdout)


def test_a_run_killed_at_every_kind_of_moment_ends_as_one_never_interrupted(killed_run):
  _, report = killed_run
  died = report["moments"]["died"]
  assert {kind[:-2] for kind in died} == {
    "train",
    "half of client state",
    "after client state",
    "half of clients.jsonl",
    "after clients.jsonl",
    "half of metrics.jsonl",
    "after metrics.jsonl",
    "before checkpoint",
    "after checkpoint",
    "on_round",
  }
  assert set(died.values()) == {"killed"}
  assert report["moments"]["last"] == "done"
  assert report["moments"]["same"]


def test_a_run_killed_from_outside_ends_as_one_never_interrupted(killed_run):
  _, report = killed_run
  assert report["outside"] == {"kills": 4, "last": "done", "same": True}


def test_the_uninterrupted_run_is_whole(killed_run):
  base, _ = killed_run
  lines = [json.loads(x) for x in (base / "whole" / "metrics.jsonl").read_text().splitlines()]
  assert [line["round"] for line in lines if line["split"] == "train"] == list(range(1, 25))
  assert sorted(p.name for p in (base / "whole" / "checkpoints").iterdir()) == ["23", "24"]
  assert len(list((base / "whole" / "clients").rglob("*"))) == 3 + 3 * 3  # three rounds a site


def test_a_run_writes_nothing_to_stderr(tmp_path):
  code = (
    "import sys; from pathlib import Path; from tests.federation.server import killed_run;"
    "killed_run.run(Path(sys.argv[1]), 1)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code, str(tmp_path)],
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
