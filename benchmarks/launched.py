"""Starts `launch.py` and measures when each line of its metrics appears."""

import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from afspl_jax.storage.run_lines import METRICS, read_lines
from benchmarks.process import ChildError

ROOT = Path(__file__).parents[1]


def launched(
  run: Path, flags: Sequence[str], environment: Mapping[str, str]
) -> Generator[tuple[float, dict[str, Any]], None, None]:
  """Starts a run; closing the generator kills it.

  Args:
    run: its folder.
    flags: flags of launch.py besides --workdir.
    environment: its environment variables.

  Yields:
    The seconds since the start, and a line of metrics.jsonl, for each line as it appears.

  Raises:
    ChildError: the run failed; has the last line of its output.
  """
  log, seen = run.with_suffix(".log"), 0
  begin = time.perf_counter()
  with log.open("w") as out:
    process = subprocess.Popen(
      [sys.executable, "launch.py", f"--workdir={run}", *flags],
      cwd=ROOT,
      env=dict(environment),
      stdout=out,
      stderr=subprocess.STDOUT,
    )
  try:
    ended = False
    while not ended:
      time.sleep(0.05)
      ended = process.poll() is not None  # checked first, so that no line is missed
      lines = read_lines(run / METRICS)
      for line in lines[seen:]:
        yield time.perf_counter() - begin, line
      seen = len(lines)
    if process.returncode:
      last = (log.read_text().strip().splitlines() or ["nothing"])[-1]
      raise ChildError(f"launch.py ended with {process.returncode}: {last}")
  finally:
    process.kill()
    process.wait()
