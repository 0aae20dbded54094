import fcntl
import json
import signal
import subprocess
import sys

import pytest

from afspl_jax.errors import UserError
from afspl_jax.storage import run_folder
from afspl_jax.storage.run_folder import RunFolder

CONFIG = {"seed": 0, "data": {"num_clients": 10, "source": "shapes"}, "fusion_weights": (0.5, 0.5)}
FACTS = {"backbone": {"clip": "abc"}, "partition": "def"}


def opened(path, config=CONFIG, facts=FACTS):
  folder = RunFolder.open(path, config)
  try:
    folder.require_same(facts)
  except UserError:
    folder.close()
    raise
  return folder


def line(round, split="train"):
  return {"round": round, "split": split, "loss": 0.5}


def test_config_versions_and_facts_are_recorded(tmp_path):
  with opened(tmp_path / "runs" / "x"):
    stored = json.loads((tmp_path / "runs" / "x" / "config.json").read_text())
  assert stored["config"]["data"] == CONFIG["data"] and stored["facts"]["partition"] == "def"
  assert stored["versions"].keys() >= {"python", "jax", "flwr", "orbax-checkpoint"}


def test_the_same_run_opens_again_and_keeps_its_lines(tmp_path):
  for round in range(2):
    with opened(tmp_path) as folder:
      folder.append_metrics(line(round))
      folder.append_clients([{"round": round, "client": c, "status": "ok"} for c in "ab"])
  with opened(tmp_path) as folder:
    assert folder.metrics() == [line(0), line(1)]
    assert [c["client"] for c in folder.clients()] == ["a", "b", "a", "b"]


@pytest.mark.parametrize(
  "config, facts, why",
  [
    ({**CONFIG, "seed": 1}, FACTS, r"changed: seed: 0 -> 1\. Undo"),
    (
      {**CONFIG, "data": {"num_clients": 5, "source": "coco"}},
      FACTS,
      r"data.num_clients: 10 -> 5; data.source: 'shapes' -> 'coco'",
    ),
    ({**CONFIG, "fusion_weights": (0.5,)}, FACTS, r"fusion_weights: \[0.5, 0.5\] -> \[0.5\]"),
    ({**CONFIG, "new": 3}, FACTS, r"new: '\(absent\)' -> 3"),
    (CONFIG, {**FACTS, "partition": "xyz"}, "partition: 'def' -> 'xyz'"),
    (CONFIG, {"partition": "def"}, "backbone"),
  ],
)
def test_a_changed_config_or_fact_is_rejected_by_field_name(tmp_path, config, facts, why):
  opened(tmp_path).close()
  before = (tmp_path / "config.json").read_bytes()
  with pytest.raises(ValueError, match=why) as error:
    opened(tmp_path, config, facts)
  assert "\n" not in str(error.value)
  assert (tmp_path / "config.json").read_bytes() == before
  opened(tmp_path).close()  # the error released the lock


def test_other_versions_do_not_stop_a_run(tmp_path):
  opened(tmp_path).close()
  file = tmp_path / "config.json"
  file.write_text(file.read_text().replace('"jax": "', '"jax": "9'))
  opened(tmp_path).close()


def test_a_run_that_did_not_start_may_change_its_config(tmp_path):
  RunFolder.open(tmp_path, CONFIG).close()
  RunFolder.open(tmp_path, {**CONFIG, "seed": 1}).close()
  opened(tmp_path, {**CONFIG, "seed": 2}).close()
  stored = json.loads((tmp_path / "config.json").read_text())
  assert stored["config"]["seed"] == 2
  with pytest.raises(ValueError, match="changed: seed: 2 -> 3"):
    RunFolder.open(tmp_path, {**CONFIG, "seed": 3})


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_damaged_config_is_a_clear_error(tmp_path, text):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(ValueError, match=r"config.json: expected a run's config; got"):
    opened(tmp_path)


def test_a_folder_with_lines_but_without_a_config_is_rejected(tmp_path):
  (tmp_path / "metrics.jsonl").write_text("precious\n")
  with pytest.raises(ValueError, match=r"metrics.jsonl without config.json"):
    opened(tmp_path)
  assert (tmp_path / "metrics.jsonl").read_text() == "precious\n"


def test_a_folder_that_is_not_writable_is_an_error_of_one_line(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(ValueError, match="expected a folder that can be written; got") as error:
    opened(tmp_path / "file" / "run")
  assert "\n" not in str(error.value) and "--workdir" in str(error.value)


def test_a_folder_is_locked_until_its_process_is_killed(tmp_path):
  code = (
    "import sys, time; from afspl_jax.storage.run_folder import RunFolder;"
    "f = RunFolder.open(sys.argv[1], {}); print('open', flush=True); time.sleep(3600)"
  )
  other = subprocess.Popen(
    [sys.executable, "-c", code, str(tmp_path)],
    stdout=subprocess.PIPE,
  )
  try:
    assert other.stdout.readline() == b"open\n"
    with pytest.raises(ValueError, match="expected no other process in this run's folder"):
      opened(tmp_path, {}, {})
  finally:
    other.send_signal(signal.SIGKILL)
    other.wait()
    other.stdout.close()
  opened(tmp_path, {}, {}).close()


def test_each_change_of_place_is_recorded_and_none_is_compared(tmp_path):
  for devices in ("1 x cpu", "1 x cpu", "4 x TPU v4", "1 x cpu"):
    with opened(tmp_path) as folder:
      folder.record_place({"devices": devices})
  stored = json.loads((tmp_path / "config.json").read_text())
  assert [place["devices"] for place in stored["places"]] == ["1 x cpu", "4 x TPU v4", "1 x cpu"]


def test_a_short_lock_of_a_reader_does_not_keep_a_run_from_starting(tmp_path, monkeypatch):
  opened(tmp_path).close()
  reader = open(tmp_path / "lock")  # noqa: SIM115
  fcntl.flock(reader, fcntl.LOCK_SH)
  pauses = []

  def pause(seconds):
    pauses.append(seconds)
    reader.close()

  monkeypatch.setattr(run_folder.time, "sleep", pause)
  opened(tmp_path).close()
  assert len(pauses) == 1


def test_the_lock_also_holds_within_one_process(tmp_path):
  with opened(tmp_path), pytest.raises(ValueError, match="one is running"):
    opened(tmp_path)
  opened(tmp_path).close()


def fill(folder):
  for round in range(4):
    folder.append_metrics(line(round))
    folder.append_clients([{"round": round, "client": "é", "status": "ok"}])


def test_rewind_deletes_later_rounds_in_both_files(tmp_path):
  with opened(tmp_path) as folder:
    fill(folder)
    folder.rewind(2)
    assert [x["round"] for x in folder.metrics()] == [0, 1, 2]
    assert [x["round"] for x in folder.clients()] == [0, 1, 2]
    folder.rewind(-1)
    assert folder.metrics() == folder.clients() == []


def test_rewind_deletes_a_line_that_is_incomplete_at_any_byte(tmp_path):
  with opened(tmp_path) as folder:
    fill(folder)
    file = tmp_path / "clients.jsonl"
    whole = file.read_bytes()
    kept = whole[: whole.rstrip(b"\n").rindex(b"\n") + 1]
    for size in range(len(kept), len(whole)):
      file.write_bytes(whole[:size])
      folder.rewind(3)
      assert file.read_bytes() == kept, size


def test_rewind_does_not_write_a_file_that_needs_no_change(tmp_path):
  with opened(tmp_path) as folder:
    fill(folder)
    before = (tmp_path / "metrics.jsonl").stat()
    folder.rewind(3)
    assert (tmp_path / "metrics.jsonl").stat().st_ino == before.st_ino
    assert not list(tmp_path.glob("*.tmp"))


def test_a_damaged_line_before_the_last_is_an_error(tmp_path):
  with opened(tmp_path) as folder:
    fill(folder)
    file = tmp_path / "metrics.jsonl"
    file.write_text(file.read_text().replace('{"round": 1', '{"rou'))
    with pytest.raises(ValueError, match=r"metrics.jsonl:2: expected a JSON object"):
      folder.rewind(3)


def test_scores_that_are_not_finite_become_null(tmp_path):
  with opened(tmp_path) as folder:
    folder.append_metrics({"round": 0, "loss": float("nan"), "cider": float("inf")})
  text = (tmp_path / "metrics.jsonl").read_text()
  assert json.loads(text, parse_constant=pytest.fail) == {"round": 0, "loss": None, "cider": None}


def test_prediction_files_sort_by_round(tmp_path):
  with opened(tmp_path) as folder:
    path = folder.predictions_file(30)
  assert path == tmp_path / "predictions" / "round_0030.jsonl"
  path.write_text("")
