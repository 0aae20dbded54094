"""Programs of the federation's hosts, and what is needed to look at them."""

import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
PATIENCE = 120.0  # seconds: processes start slowly on a busy machine


def start(program, *arguments, out, **environment):
  """Starts one of the programs of this folder; what it prints goes to the file `out`."""
  with open(out, "w") as file:
    return subprocess.Popen(
      [sys.executable, str(HERE / program), *map(str, arguments)],
      stdout=file,
      stderr=subprocess.STDOUT,
      env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )


def wait_for(condition, what, seconds=PATIENCE):
  """Waits until the condition holds; returns the seconds that took."""
  begin = time.monotonic()
  while not condition():
    assert time.monotonic() < begin + seconds, f"{what}: not within {seconds:.0f} s"
    time.sleep(0.05)
  return time.monotonic() - begin


def exists(pid):
  """Whether there is such a process; one that ended and that nobody has waited for is none."""
  try:
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
  except (FileNotFoundError, ProcessLookupError):
    return False
  return state != "Z"


def pids(out):
  """Of the children that a program says it has, by name."""
  lines = [line.split(" pid ") for line in out.read_text().splitlines() if " pid " in line]
  return {name: int(pid) for name, pid in lines}
