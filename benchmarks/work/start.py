"""From a command to its first finished round: once with nothing kept, once with all kept."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.bench import Bench
from benchmarks.compare import spread
from benchmarks.table import Line

_ROOT = Path(__file__).parents[2]


def first_round(bench: Bench) -> Iterator[Line]:
  """`python launch.py` with the shipped pair, until round 1 stands in metrics.jsonl."""
  with tempfile.TemporaryDirectory() as folder:
    environment = os.environ | {"XDG_CACHE_HOME": folder}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    for name in ("first start: compiles, encodes all images", "second start"):
      marks = [
        _start(Path(folder) / f"run{i}-{len(name)}", environment)
        for i in range(1 if name.startswith("first") else bench.turns)
      ]
      for what in ("import", "round 0", "round 1"):
        times = [mark[what] for mark in marks]
        yield Line(f"{name}: {_WHAT[what]}", spread(times))


_WHAT = {
  "import": "package imported",
  "round 0": "untrained prompter scored",
  "round 1": "first round finished",
}


def _start(run: Path, environment: dict[str, str]) -> dict[str, float]:
  """Seconds from the command until each mark."""
  begin = time.perf_counter()
  subprocess.run(
    [sys.executable, "-c", "import afspl_jax.run"], check=True, env=environment, cwd=_ROOT
  )
  marks = {"import": time.perf_counter() - begin}
  begin = time.perf_counter()
  process = subprocess.Popen(
    [sys.executable, "launch.py", f"--workdir={run}", "--config.eval.every=1"],
    env=environment,
    cwd=_ROOT,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  try:
    while "round 1" not in marks:
      time.sleep(0.05)
      if process.poll() is not None:
        raise RuntimeError(f"launch.py ended with {process.returncode} before its first round")
      for line in read_lines(run / "metrics.jsonl"):
        marks.setdefault(f"round {line['round']}", time.perf_counter() - begin)
  finally:
    process.kill()
    process.wait()
  return marks


def read_lines(file: Path) -> list[dict[str, Any]]:
  """The whole lines of a file of JSON lines that is being written."""
  if not file.exists():
    return []
  whole = file.read_text().rpartition("\n")[0]
  return [json.loads(line) for line in whole.splitlines()]
