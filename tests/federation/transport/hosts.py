"""Starts the programs of this folder as processes, and waits for them."""

import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
# Seconds until a wait fails. A wait ends as soon as its condition holds, so that only a broken
# program takes this long; processes start slowly on a busy machine.
TIMEOUT = 300.0


def start(program, *arguments, out, **environment):
  """Starts one of the programs of this folder; its output goes to the file `out`."""
  with open(out, "w") as file:
    return subprocess.Popen(
      [sys.executable, str(HERE / program), *map(str, arguments)],
      stdout=file,
      stderr=subprocess.STDOUT,
      env=os.environ | environment,
    )


def wait_for(condition, what, seconds=TIMEOUT):
  """Waits until the condition holds; returns the seconds that it took."""
  begin = time.monotonic()
  while not condition():
    assert time.monotonic() < begin + seconds, f"no {what} within {seconds:.0f} s"
    time.sleep(0.05)
  return time.monotonic() - begin


def exists(pid):
  """Whether a process exists; a zombie does not count."""
  try:
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
  except (FileNotFoundError, ProcessLookupError):
    return False
  return state != "Z"


def pids(out):
  """Process ids of the children that a program printed, by name."""
  lines = [line.split(" pid ") for line in out.read_text().splitlines() if " pid " in line]
  return {name: int(pid) for name, pid in lines}
