"""The cache on disk: killed, damaged, and asked by two at once."""

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from afspl_jax.data.feature_cache import FeatureCache


def killed(parts, rows, folder, name):
  """Leaves what a process leaves that is killed after `rows`."""
  cache = FeatureCache(folder, np.dtype(np.float32))
  process = multiprocessing.get_context("fork").Process(
    target=lambda: cache.get(
      [name], {"a": (60, 3), "b": (60,)}, lambda start: dying(parts(start), rows)
    )
  )
  process.start()
  process.join()
  assert process.exitcode == -signal.SIGKILL


def dying(parts, rows):
  for done, part in zip(range(0, 60, 10), parts, strict=False):
    if done == rows:
      os.kill(os.getpid(), signal.SIGKILL)
    yield part


A, B = np.arange(180, dtype=np.float32).reshape(60, 3), -np.arange(60, dtype=np.float32)


def ten_at_a_time(start):
  return ({"a": A[i : i + 10], "b": B[i : i + 10]} for i in range(start, 60, 10))


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
def test_what_a_killed_process_leaves_is_used_as_far_as_it_is_whole(tmp_path, name):
  damage, kept = DAMAGE[name]
  killed(ten_at_a_time, 30, tmp_path, "x")
  (left,) = tmp_path.iterdir()
  damage(left)
  starts = []
  cache = FeatureCache(tmp_path, np.dtype(np.float32))
  parts = lambda start: starts.append(start) or ten_at_a_time(start)  # noqa: E731
  for _ in range(2):  # the second time from the finished files
    found = cache.get(["x"], {"a": (60, 3), "b": (60,)}, parts)
    np.testing.assert_array_equal(found["a"], A)
    np.testing.assert_array_equal(found["b"], B)
  assert starts == [kept]
  assert [folder.suffix for folder in tmp_path.iterdir()] == [""]


def test_of_two_processes_one_encodes_and_the_other_waits(tmp_path):
  started, go_on, made = threading.Event(), threading.Event(), []

  def slowly(start):
    made.append(start)
    started.set()
    assert go_on.wait(30)
    return ten_at_a_time(start)

  def get():
    return FeatureCache(tmp_path, np.dtype(np.float32)).get(
      ["x"], {"a": (60, 3), "b": (60,)}, slowly
    )

  with ThreadPoolExecutor(2) as pool:  # each opens the folder for itself, as processes do
    first = pool.submit(get)
    assert started.wait(30)
    second = pool.submit(get)
    assert not second.done() and not list(tmp_path.glob("*[!t]"))
    go_on.set()
    for future in (first, second):
      np.testing.assert_array_equal(future.result(30)["a"], A)
  assert made == [0]
