"""The cache on disk: killed, damaged, and asked by two at once."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from afspl_jax.data.feature_cache import FeatureCache, copy_rows

FLOAT, SHAPES = np.dtype(np.float32), {"a": (60, 3), "b": (60,)}
A, B = np.arange(180, dtype=np.float32).reshape(60, 3), -np.arange(60, dtype=np.float32)


def ten_at_a_time(start):
  return ({"a": A[i : i + 10], "b": B[i : i + 10]} for i in range(start, 60, 10))


@pytest.fixture(scope="module")
def left(tmp_path_factory):
  """What a process leaves that is killed when half of the rows are written."""
  folder = tmp_path_factory.mktemp("killed")
  process = subprocess.run([sys.executable, __file__, folder], check=False)
  assert process.returncode == -signal.SIGKILL
  return folder


def dying(start):
  for done, part in enumerate(ten_at_a_time(start)):
    if done == 3:
      os.kill(os.getpid(), signal.SIGKILL)
    yield part


DAMAGE = {
  "none": (lambda folder: None, 30),
  "rows without a line": (lambda folder: append(folder / "a.npy", bytes(50)), 30),
  "half a line": (lambda folder: append(folder / "parts.txt", b"10 12"), 30),
  "a line without rows": (lambda folder: append(folder / "parts.txt", b"10 1234\n"), 30),
  "a line that is none": (lambda folder: append(folder / "parts.txt", b"\0\0\n10 1\n"), 30),
  "rows cut off": (lambda folder: os.truncate(folder / "b.npy", 128 + 4 * 25), 20),
  "rows of zeros": (lambda folder: overwrite(folder / "a.npy", 128 + 12 * 15, bytes(12)), 10),
  "another head": (lambda folder: overwrite(folder / "a.npy", 0, b"?"), 0),
  "no log": (lambda folder: (folder / "parts.txt").unlink(), 0),
  "a file missing": (lambda folder: (folder / "b.npy").unlink(), 0),
}


def append(file, data):
  with file.open("ab") as out:
    out.write(data)


def overwrite(file, where, data):
  with file.open("r+b") as out:
    out.seek(where)
    out.write(data)


@pytest.mark.parametrize("name", DAMAGE)
def test_complete_rows_of_a_killed_process_are_used(left, tmp_path, name):
  damage, kept = DAMAGE[name]
  shutil.copytree(left, tmp_path, dirs_exist_ok=True)
  (folder,) = tmp_path.iterdir()
  damage(folder)
  starts = []
  cache = FeatureCache(tmp_path, FLOAT)
  parts = lambda start: starts.append(start) or ten_at_a_time(start)  # noqa: E731
  for _ in range(2):  # the second time from the finished files
    found = cache.get(["x"], SHAPES, parts)
    np.testing.assert_array_equal(found["a"], A)
    np.testing.assert_array_equal(found["b"], B)
  assert starts == [kept]
  assert [folder.suffix for folder in tmp_path.iterdir()] == [""]


def test_only_one_of_two_processes_encodes(tmp_path):
  started, go_on, made = threading.Event(), threading.Event(), []

  def slowly(start):
    made.append(start)
    started.set()
    assert go_on.wait(30)
    return ten_at_a_time(start)

  def get():
    return FeatureCache(tmp_path, FLOAT).get(["x"], SHAPES, slowly)

  with ThreadPoolExecutor(2) as pool:  # each opens the folder for itself, as processes do
    first = pool.submit(get)
    assert started.wait(30)
    second = pool.submit(get)
    assert not second.done() and not list(tmp_path.glob("*[!t]"))
    go_on.set()
    for future in (first, second):
      np.testing.assert_array_equal(future.result(30)["a"], A)
  assert made == [0]


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's /proc")
def test_rows_that_were_read_do_not_stay_in_memory(tmp_path):
  large = np.arange(1 << 20, dtype=np.float32).reshape(1024, 1024)
  cache = FeatureCache(tmp_path, FLOAT)
  kept = cache.get(["large"], {"a": large.shape}, lambda start: [{"a": large[start:]}])["a"]
  rows = np.array([3, 1000, 3, 0])
  np.testing.assert_array_equal(copy_rows(kept, rows), large[rows])
  np.testing.assert_array_equal(copy_rows(kept, np.arange(1024)), large)
  assert resident(tmp_path) == 0
  np.testing.assert_array_equal(kept, large)  # as a plain array
  assert resident(tmp_path) >= large.nbytes


def resident(folder):
  """Bytes of mapped files of a folder that are in this process."""
  pages = Path("/proc/self/smaps").read_text().split(str(folder))[1:]
  sizes = [int(part.split("Rss:")[1].split()[0]) for part in pages]
  return sum(sizes) * 1024


if __name__ == "__main__":
  FeatureCache(Path(sys.argv[1]), FLOAT).get(["x"], SHAPES, dying)
