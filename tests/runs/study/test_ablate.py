"""`afspl ablate` as a user starts it: its exit status and its files."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from afspl_jax import cli
from afspl_jax.config.experiment import Experiment
from afspl_jax.config.study import Study
from afspl_jax.errors import UserError
from afspl_jax.runs.study.ablate import run_study
from afspl_jax.runs.study.workers import Task, TaskResult, run_all
from tests.quick_compile import QUICK_COMPILE

STUDY = """
from afspl_jax.config.experiment import Backbone, Data, Eval, Experiment, Fed, Optim, Prompter
from afspl_jax.config.study import Study


def get_study():
  return Study(
    base=Experiment(
      data=Data(dir={dir!r}, target_length=12),
      backbone=Backbone(clip={clip!r}, t5={t5!r}),
      prompter=Prompter(tokens=4, pool=3, k_max=2),
      optim=Optim(batch_size=4, local_steps=2),
      fed=Fed(rounds=2, clients_per_round=3),
      eval=Eval(every=2, val_examples=4, test_examples=8, batch_size=8, max_tokens=4),
    ),
    settings={{"natural": {{}}, "also natural": {{"data.dirichlet_alpha": 0.5}}}},
    variants={{
      "usual": {{}},
      "terse": {{"data.caption_instruction": "describe"}},  # other numbers by the same programs
      "broken": {{"eval.every": 0}},
    }},
    seeds=(0, 1),
    reference="terse",
    full="usual",
  )
"""


class Ablation:
  """Starts the command on one study with small checkpoints and data, in several folders."""

  def __init__(self, base: Path, checkpoints, shapes_dir: Path):
    self.base = base
    folders = {"dir": str(shapes_dir), "clip": str(checkpoints.clip), "t5": str(checkpoints.t5)}
    (base / "small.py").write_text(STUDY.format(**folders))
    self.env = {
      **os.environ,
      "XLA_FLAGS": QUICK_COMPILE,
      "JAX_PLATFORMS": "cpu",
      "XDG_CACHE_HOME": str(base / "cache"),
    }

  def start(self, *args: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "afspl_jax.cli", "ablate", "small.py", *args]
    pipe = subprocess.PIPE
    return subprocess.Popen(
      command, cwd=self.base, env=self.env, stdout=pipe, stderr=pipe, text=True
    )

  def run(self, *args: str) -> subprocess.CompletedProcess:
    return ended(self.start(*args))

  def stopped(self, how: signal.Signals, when: Callable[[], bool], *args: str):
    """Sends a signal as soon as `when()`."""
    process = self.start(*args)
    while process.poll() is None and not when():
      time.sleep(0.002)
    process.send_signal(how)
    return ended(process)


def ended(process: subprocess.Popen) -> subprocess.CompletedProcess:
  out, err = process.communicate(timeout=300)
  return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture(scope="module")
def ablation(tmp_path_factory, tiny_checkpoints, shapes_dir):
  return Ablation(tmp_path_factory.mktemp("ablate"), tiny_checkpoints, shapes_dir)


@pytest.fixture(scope="module")
def whole(ablation):
  """A study that nothing interrupted: its folder, and how it ended."""
  done = ablation.run("--workdir=whole", "--jobs=2")
  return ablation.base / "whole", done


@pytest.fixture(scope="module")
def troubled(ablation, whole):
  """The same study after Ctrl-C at its start and SIGKILL in its runs, and then finished."""
  folder, args = ablation.base / "troubled", ("--workdir=troubled", "--jobs=2")

  def files(pattern: str) -> list[Path]:
    return list(folder.glob(f"runs/*/{pattern}"))

  attempts = [
    ablation.stopped(signal.SIGINT, lambda: any(folder.glob("logs/*")), *args),
    ablation.stopped(
      signal.SIGKILL, lambda: len(files("clients.jsonl")) > len(files("finished")) >= 1, *args
    ),
  ]
  finished = {path: path.parent.stat().st_mtime_ns for path in files("finished")}
  return folder, attempts, finished, ablation.run(*args)


def metrics(folder: Path) -> dict[str, list[dict]]:
  """Lines of every run, without times."""
  out = {}
  for file in sorted(folder.glob("runs/*/metrics.jsonl")):
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    out[file.parent.name] = [{k: v for k, v in x.items() if k != "seconds"} for x in lines]
  return out


def table(folder: Path) -> str:
  return (folder / "table.md").read_text().replace(folder.name, "FOLDER")


def test_each_distinct_experiment_is_run_once_and_cells_say_where(whole):
  folder, _ = whole
  found = json.loads((folder / "cells.json").read_text())
  assert len(found) == 2 * 3 * 2
  good = [line for line in found if line["variant"] != "broken"]
  assert {folder / line["run"] for line in good} == {
    p.parent for p in folder.glob("runs/*/finished")
  }
  assert len({line["run"] for line in good}) == 4
  for line in good:
    config = json.loads((folder / line["run"] / "config.json").read_text())["config"]
    assert config["seed"] == line["seed"]
    assert (config["data"]["caption_instruction"] == "describe") == (line["variant"] == "terse")


def test_a_failing_run_is_named_and_the_others_go_on(whole):
  folder, done = whole
  assert done.returncode == 1, done.stderr
  assert "Traceback" not in done.stderr
  failures = [json.loads(line) for line in (folder / "failures.jsonl").read_text().splitlines()]
  assert len(failures) == 2
  reason = "eval.every: expected at least 1; got 0"
  for line in failures:
    assert line["reason"] == reason
    assert line["cells"][0].startswith("broken, natural, seed ")
    assert "Traceback" in (folder / "logs" / f"{line['run']}.log").read_text()
  assert f"- broken, seed 0, 1: {reason}" in table(folder)


def test_the_table_has_the_means_of_the_runs(whole):
  folder, _ = whole
  found = json.loads((folder / "cells.json").read_text())
  lines = metrics(folder)
  ciders = [
    next(x["cider"] for x in lines[Path(c["run"]).name] if x["split"] == "test")
    for c in found
    if c["setting"] == "natural" and c["variant"] == "terse"
  ]
  assert len(ciders) == 2
  assert f"| terse | {sum(ciders) / 2:.3f} ± " in table(folder)


def test_ctrl_c_stops_cleanly_and_names_the_command_to_resume(troubled):
  _, (interrupted, _), _, _ = troubled
  assert interrupted.returncode == 130
  assert "Traceback" not in interrupted.stderr
  last = interrupted.stderr.splitlines()[-1]
  assert last.endswith("Go on with: afspl ablate small.py --workdir=troubled --jobs=2")


def test_a_killed_study_ends_with_the_same_results(whole, troubled):
  folder, (_, killed), finished, last = troubled
  assert killed.returncode == -signal.SIGKILL
  assert finished and last.returncode == 1, last.stderr
  assert metrics(folder) == metrics(whole[0])
  assert table(folder) == table(whole[0])


def test_finished_runs_are_not_repeated(troubled):
  _, _, finished, _ = troubled
  assert {path: path.parent.stat().st_mtime_ns for path in finished} == finished


def test_table_only_makes_the_table_again(ablation, whole, monkeypatch):
  folder, _ = whole
  before, written = table(folder), metrics(folder)
  (folder / "table.md").unlink()
  monkeypatch.chdir(ablation.base)
  assert cli.main(["ablate", "small.py", "--workdir=whole", "--table"]) == 0
  assert table(folder) == before and metrics(folder) == written


# In this process


@pytest.mark.parametrize(
  "how, part",
  [
    ({"jobs": 0}, "--jobs: expected at least 1; got 0"),
    ({"only": ["sparse"]}, "full AFSPL, dense FedAvg; got 'sparse'"),
  ],
)
def test_a_wrong_flag_is_one_line_before_anything_runs(tmp_path, how, part):
  study = Study(Experiment(), {"": {}}, {"full AFSPL": {}, "dense FedAvg": {"fed.rounds": 1}}, (0,))
  with pytest.raises(UserError) as error:
    run_study(study, tmp_path, **how)
  assert part in str(error.value) and "\n" not in str(error.value)
  assert list(tmp_path.iterdir()) == []


def test_a_worker_that_dies_is_a_failed_run(tmp_path):
  def kill() -> None:
    while not (children := multiprocessing.active_children()):
      time.sleep(0.01)
    for child in children:
      child.kill()

  threading.Thread(target=kill).start()
  task = Task(Experiment(), tmp_path / "run", tmp_path / "log")
  reason = "its process was ended by SIGKILL; is there enough memory?"
  assert list(run_all([task], 1, tmp_path / "compiled")) == [TaskResult(task, reason)]


def test_after_a_failure_the_next_run_has_a_new_process(tmp_path):
  config = Experiment()
  config.seed = None  # type: ignore[assignment]
  tasks = [Task(config, tmp_path / name, tmp_path / f"{name}.log") for name in ("a", "b")]
  reason = "TypeError: must be real number, not NoneType"
  assert list(run_all(tasks, 1, tmp_path / "compiled")) == [TaskResult(t, reason) for t in tasks]
  for task in tasks:
    assert task.log.read_text().count("Traceback") == 1
  assert multiprocessing.active_children() == []
