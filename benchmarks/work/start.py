"""Time from a command to its first finished round, without and with caches."""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.compare import spread
from benchmarks.launched import launched
from benchmarks.table import Line

_MARKS = {0: "untrained prompter scored", 1: "first round finished"}  # by round
_LAST = max(_MARKS) + 1  # gives the duration of a round


def first_round(bench: Bench) -> Iterator[Line]:
  """Measures `python launch.py` with the shipped models until its rounds are in metrics.jsonl.

  The first local step begins one round's duration before the first round ends.
  """
  with tempfile.TemporaryDirectory() as folder:
    environment = os.environ | {"XDG_CACHE_HOME": folder}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    first, *others = (_start(Path(folder) / f"run{i}", environment) for i in range(1 + bench.turns))
  for name, starts in (("first start", [first]), ("second start", others)):
    for round, meaning in _MARKS.items():
      yield Line(f"{name}: {meaning}", spread([start[round] for start in starts]))
    begins = [2 * start[_LAST - 1] - start[_LAST] for start in starts]
    yield Line(f"{name}: first local step begins", spread(begins))


def _start(run: Path, environment: Mapping[str, str]) -> dict[int, float]:
  """Returns the seconds until the end of each round up to `_LAST`."""
  marks: dict[int, float] = {}
  with contextlib.closing(launched(run, ["--config.eval.every=30"], environment)) as lines:
    for seconds, line in lines:
      marks.setdefault(line["round"], seconds)
      if _LAST in marks:
        break
  return marks
