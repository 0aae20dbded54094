"""A disk that fills up ends a run in one clear line, and costs at most the round in progress."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from afspl_jax.errors import UserError
from afspl_jax.storage.run_folder import RunFolder

HERE = Path(__file__).parent
MOUNT = "mount -t tmpfs -o size=3200k tmpfs"


def own_disk(folder: Path) -> bool:
  """Whether a process may have a small disk of its own here (Linux, user namespaces)."""
  try:
    made = subprocess.run(["unshare", "-rm", "sh", "-c", f"{MOUNT} '{folder}'"], check=False)
  except FileNotFoundError:
    return False
  return made.returncode == 0


@pytest.mark.parametrize(
  "room, what",
  [
    ("0", "wire.jsonl: expected to write to it; got"),  # nothing fits
    ("80000", "checkpoints/3: expected to write a checkpoint; got"),  # that fits only in part
    ("0 state", "clients/site_00/round_000003.safetensors: expected to write the state of site_00"),
    # Two clients have trained when the third cannot keep its state.
    ("140000 state", "clients/site_0"),
  ],
)
def test_a_full_disk_is_said_and_a_freed_one_is_gone_on_with(tmp_path, room, what):
  small, large = tmp_path / "small", tmp_path / "large"
  small.mkdir()
  large.mkdir()
  if not own_disk(small):
    pytest.skip("needs Linux, where a user may `unshare -rm` and mount a tmpfs")
  program = f"'{sys.executable}' '{HERE / 'full_disk.py'}' '{small}' '{large}' {room}"
  done = subprocess.run(
    ["unshare", "-rm", "sh", "-c", f"{MOUNT} '{small}' && {program}"],
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  result = json.loads(done.stdout.splitlines()[-1])
  assert result["said"].startswith(f"{small}/run/{what}")
  assert "start the same command again to go on" in result["said"] and "\n" not in result["said"]
  assert "o space left" in result["said"] and "bytes free)" in result["said"]
  assert done.stderr == ""  # no traceback before it
  assert result["same"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("name", ["metrics.jsonl", "clients.jsonl"])
def test_a_line_that_cannot_be_written_is_said(tmp_path, name):
  with RunFolder.open(tmp_path / "run", {}) as folder:
    (folder.path / name).symlink_to("/dev/full")
    append = (
      folder.append_metrics if name == "metrics.jsonl" else lambda x: folder.append_clients([x])
    )
    with pytest.raises(UserError, match=rf"{name}: expected to write to it; got: .*No space left"):
      append({"round": 1})
