"""launch.py as a user starts it: a process of its own, judged by its exit status and its files."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file

from afspl_jax.config.experiment import Optim
from tests.launcher import ROUNDS, Launcher


@pytest.fixture(scope="module")
def launcher(tmp_path_factory, tiny_checkpoints, shapes_dir):
  base = tmp_path_factory.mktemp("users")
  return Launcher(base, tiny_checkpoints, shapes_dir, optimised=True)


@pytest.fixture(scope="module")
def finished(launcher):
  """A run that nothing interrupted: its folder, and how its process ended."""
  folder = launcher.base / "finished"
  return folder, launcher.run(*launcher.small, f"--workdir={folder}")


@pytest.fixture(scope="module")
def troubled(launcher, finished):
  """The same run, interrupted, told to end, killed twice, and started again each time."""
  folder = launcher.base / "troubled"
  args = (*launcher.small, f"--workdir={folder}")

  def written(pattern):
    return lambda: next(folder.glob(pattern), None)

  attempts = [
    launcher.interrupted(written("predictions/round_0000.jsonl"), signal.SIGINT, *args),
    launcher.interrupted(written("clients/*/round_000001.safetensors"), signal.SIGTERM, *args),
    # A client has trained, and knows what the server does not: in the middle of a round.
    launcher.interrupted(written("clients/*/round_000002.safetensors"), signal.SIGKILL, *args),
    launcher.interrupted(written("checkpoints/2"), signal.SIGKILL, *args),
  ]
  return folder, attempts, launcher.run(*args)


def lines(file: Path) -> list[dict]:
  return [json.loads(line) for line in file.read_text().splitlines()]


def is_one_clear_message(done: subprocess.CompletedProcess) -> bool:
  return (
    done.returncode == 2
    and done.stderr.startswith("launch.py: ")
    and "Traceback" not in done.stderr
    and done.stdout == ""
  )


# A user's mistakes


@pytest.mark.parametrize(
  "args, parts",
  [
    (["--config=nope.py"], ["nope.py", "coco.py, drift.py, folder.py, privacy.py, robustness.py"]),
    (["--config.fed.round=5"], ["fed.round:", "no such field", "fed.rounds"]),
    (["--config.fed.rounds=five"], ["fed.rounds", "expected int", "'five'"]),
  ],
)
def test_a_mistyped_flag_is_one_line_and_status_2(launcher, args, parts):
  done = launcher.run_here(*args)
  assert is_one_clear_message(done), done.stderr
  assert len(done.stderr.splitlines()) == 1
  for part in parts:
    assert part in done.stderr


def test_all_that_is_missing_is_named_at_once(launcher):
  done = launcher.run("--config=coco.py")
  assert is_one_clear_message(done), done.stderr
  for part in (
    "hf download openai/clip-vit-base-patch32",
    "--config.backbone.clip=FOLDER",
    "hf download google/flan-t5-base",
    "--config.backbone.t5=FOLDER",
    f"python -m afspl_jax.data.prepare_coco {launcher.base / 'no_data_sets'}",
    "--config.data.dir=FOLDER",
  ):
    assert part in done.stderr
  assert not (launcher.base / "runs").exists()


def test_a_folder_that_cannot_be_written_is_one_line_and_status_2(launcher):
  (launcher.base / "file").touch()
  done = launcher.run_here(*launcher.small, f"--workdir={launcher.base / 'file' / 'run'}")
  assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
  (line,) = [line for line in done.stderr.splitlines() if line.startswith("launch.py: ")]
  assert f"{launcher.base / 'file' / 'run'}: expected a folder that can be written" in line
  assert "--workdir" in line


def test_a_changed_config_is_refused_and_names_what_changed(launcher, finished):
  folder, _ = finished
  before = (folder / "config.json").read_bytes()
  done = launcher.run_here(*launcher.small, "--config.optim.prompt_lr=0.5", f"--workdir={folder}")
  assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
  assert f"changed: optim.prompt_lr: {Optim().prompt_lr} -> 0.5." in done.stderr
  assert (folder / "config.json").read_bytes() == before


# A whole run


def test_a_run_ends_well_and_says_its_scores(finished):
  folder, done = finished
  assert done.returncode == 0, done.stderr
  (test,) = [x for x in lines(folder / "metrics.jsonl") if x["split"] == "test"]
  assert f"test split, round {ROUNDS}: cider {test['cider']:.3f}, " in done.stdout
  assert str(folder) in done.stdout.splitlines()[-1]


def test_the_metrics_hold_a_line_per_evaluation(finished):
  folder, _ = finished
  metrics = lines(folder / "metrics.jsonl")
  assert [(line["round"], line["split"]) for line in metrics] == [
    (0, "val"),
    (1, "train"),
    (2, "train"),
    (2, "val"),
    (3, "train"),
    (3, "val"),
    (3, "test"),
    (3, "test_common"),
    (3, "test_blind"),
    (3, "test_mean_fusion"),
    (3, "test_personal"),
    (3, "test_personal_common"),
  ]
  scores = {"loss", "cider", "bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "exact_match"}
  for line in metrics:
    if line["split"] in ("train", "val", "test"):
      assert line["loss"] > 0
      assert line.keys() >= {"bytes_up", "bytes_down", "seconds", "clients"}
    if line["split"] != "train":
      assert line.keys() >= scores - {"loss"}
  train, val = ([x for x in metrics if x["split"] == split] for split in ("train", "val"))
  assert all(line["clients"] == 3 and line["bytes_up"] > 10_000 for line in train)
  assert 0 < val[0]["bytes_up"] < train[0]["bytes_up"]  # image statistics
  assert [line["bytes_up"] for line in val[1:]] == [
    train[0]["bytes_up"] + train[1]["bytes_up"],
    train[2]["bytes_up"],
  ]
  assert val[0]["loss"] != val[1]["loss"] != val[2]["loss"]


def test_the_clients_hold_a_line_per_client_and_round(finished):
  folder, _ = finished
  clients = lines(folder / "clients.jsonl")
  assert [line["round"] for line in clients] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
  for line in clients:
    assert line["status"] == "ok" and line["bytes_up"] > 0
    assert line["num_examples"] > 0 and np.isfinite(line["loss"])


def test_predictions_say_how_each_example_was_prompted(finished):
  folder, _ = finished
  files = sorted(path.name for path in (folder / "predictions").iterdir())
  rounds = ["round_0000.jsonl", "round_0002.jsonl", "round_0003.jsonl"]
  assert files == [*rounds, "test.jsonl", "test_blind.jsonl", "test_personal.jsonl"]
  for name in files:
    predictions = lines(folder / "predictions" / name)
    assert len({line["id"] for line in predictions}) == len(predictions) == 8
    for line in predictions:
      assert isinstance(line["prediction"], str)
      assert len(line["references"]) == (1 if "question" in line else 5)
      assert list(line["fusion"]) == ["global", "visual", "textual", "local"]
      assert (line["fusion"]["local"] > 0) == (name == "test_personal.jsonl")
      assert sum(line["fusion"].values()) == pytest.approx(1, abs=1e-3)
      assert sum(line["prompts"].values()) == pytest.approx(1, abs=1e-3)
      assert 1 <= len(line["prompts"]) <= 2 and set(line["prompts"]) <= {"0", "1", "2"}


def test_the_config_is_resolved_and_names_weights_and_data(finished, tiny_checkpoints):
  folder, _ = finished
  stored = json.loads((folder / "config.json").read_text())
  assert stored["config"]["fed"]["rounds"] == ROUNDS
  assert stored["config"]["backbone"]["clip"] == str(tiny_checkpoints.clip)
  assert stored["config"]["optim"]["b1"] == 0.9
  assert stored["versions"]["jax"] and stored["facts"]["partition"]
  assert set(stored["facts"]["backbones"]) == {"clip", "t5"}
  assert set(stored["facts"]["data"]) == {"train", "validation", "test"}
  manifest = json.loads((folder / "partition.json").read_text())
  assert manifest["hash"] == stored["facts"]["partition"] and (folder / "partition.png").exists()
  assert manifest["source"] == stored["facts"]["data"]


def final_params(folder: Path) -> dict:
  state = folder / "checkpoints" / str(ROUNDS) / "state"
  return ocp.PyTreeCheckpointer().restore(state)["params"]


# Trouble


def test_ctrl_c_says_how_to_go_on(troubled):
  folder, (first, *_), _ = troubled
  assert first.returncode == 130
  assert "Traceback" not in first.stderr
  assert f"Go on with: {sys.executable} " in first.stderr.splitlines()[-1]
  assert f"--workdir={folder}" in first.stderr.splitlines()[-1]


def test_a_host_that_is_shut_down_ends_the_run_in_good_order(troubled):
  _, (_, told, *_), _ = troubled
  assert told.returncode == 143 and "Traceback" not in told.stderr
  last = told.stderr.splitlines()[-1]
  assert last.startswith("terminated: finished rounds are kept. Go on with: ")


def test_a_run_killed_twice_ends_as_one_that_never_was(finished, troubled):
  whole, _ = finished
  folder, (_, _, *killed), last = troubled
  assert [attempt.returncode for attempt in killed] == [-signal.SIGKILL] * 2
  assert last.returncode == 0, last.stderr

  def without_time(file):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines(file)]

  for name in ("metrics.jsonl", "clients.jsonl"):
    assert without_time(folder / name) == without_time(whole / name)
  files = [path.relative_to(whole) for path in (whole / "predictions").iterdir()]
  states = [path.relative_to(whole) for path in (whole / "clients").rglob("*.safetensors")]
  assert len(files) == 6 and len(states) == 3 * ROUNDS
  assert any("residual/pool/prompts" in load_file(whole / state) for state in states)
  for file in [*files, *states, "sites.jsonl"]:
    assert (folder / file).read_bytes() == (whole / file).read_bytes(), file
  ours, expected = (flat(final_params(path)) for path in (folder, whole))
  assert ours.keys() == expected.keys()
  for name, leaf in expected.items():
    assert ours[name].tobytes() == leaf.tobytes(), name


def flat(tree, prefix: str = "") -> dict[str, np.ndarray]:
  if not isinstance(tree, dict):
    return {prefix: np.asarray(tree)}
  return {k: v for name, part in tree.items() for k, v in flat(part, f"{prefix}/{name}").items()}


def test_starting_a_finished_run_again_changes_nothing(launcher, finished):
  folder, done = finished

  def contents():
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {path: path.read_bytes() for path in files}

  before = contents()
  again = launcher.run(*launcher.small, f"--workdir={folder}")
  assert again.returncode == 0, again.stderr
  assert again.stdout.splitlines()[-2:] == done.stdout.splitlines()[-2:]
  assert contents() == before
