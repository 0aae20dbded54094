"""The checks of a soak: each gives a verdict with what it found."""

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from afspl_jax.config.experiment import Experiment
from afspl_jax.storage.client_status import Outcome, parse_status
from afspl_jax.storage.run_lines import RunLine
from benchmarks.soak import files, processes
from benchmarks.soak.federation import TERMINATED, Federation
from benchmarks.soak.processes import Usage
from benchmarks.soak.replay import replay
from benchmarks.soak.soak import Sample, Soak

_SPARE_MEMORY = 0.1  # share that a process may have more: an allocator keeps some of its peaks
_SHOWN = 5  # findings in a verdict; the JSON has all
_LISTENS = 10.0  # seconds in which a port must be free


class Verdict(NamedTuple):
  """The result of a check."""

  check: str
  found: list[str]  # what is wrong

  @property
  def passed(self) -> bool:
    """Whether nothing is wrong."""
    return not self.found

  def __str__(self) -> str:
    rest = f" and {len(self.found) - _SHOWN} more" if len(self.found) > _SHOWN else ""
    wrong = "; ".join(self.found[:_SHOWN]) + rest
    return f"FAILED  {self.check}: {wrong}" if wrong else f"ok      {self.check}"


def ended_well(soak: Soak, finished: bool, statuses: Mapping[str, int]) -> Verdict:
  """The run went on to its end, and all processes ended in good order when they were told to."""
  wrong = [
    f"{name} ended with {status}" for name, status in statuses.items() if status != TERMINATED
  ]
  if not soak.calm_rounds:
    wrong.append("no round was finished after the last disturbance")
  if soak.stalled:
    wrong.append("no round was finished for too long")
  if finished != soak.federation.server.ended:
    wrong.append("the server did not finish")
  return Verdict("the run ends", wrong)


def sites_came_back(sites: Sequence[str], lines: Sequence[RunLine]) -> Verdict:
  """All sites are in the last round's average."""
  last = max((line["round"] for line in lines), default=0)
  ok = {
    line["client"]
    for line in lines
    if line["round"] == last and parse_status(line["status"]).outcome is Outcome.OK
  }
  return Verdict("all sites are in the last round", [f"{s} is not" for s in sites if s not in ok])


def same_bits(config: Experiment, soak: Soak, folder: Path) -> Verdict:
  """A run that was told which replies counted ends with the same bits."""
  federation = soak.federation
  states = {site: federation.states(site) for site in federation.sites}
  found = replay(config, federation.run, states, soak.states.rounds, folder)
  return Verdict("parameters and local states equal those of the replay, bit for bit", found)


def nothing_left(federation: Federation, mark: str) -> list[Verdict]:
  """No process, port, connection or temporary file is left."""
  running = [f"{name} ({pid})" for pid, name in processes.find(mark).items()]
  open_lines = [
    f"{line.connections()} to {site}"
    for site, line in federation.lines.items()
    if line.connections()
  ]
  return [
    Verdict("no process is left", running),
    Verdict("no port is left", _taken(federation.port)),
    Verdict("no connection is left", open_lines),
    Verdict("no temporary file is left", files.files_below(federation.temporary)),
    Verdict("every file is accounted for", files.unexpected(files.files_below(federation.folder))),
  ]


def no_traceback(logs: Sequence[Path]) -> Verdict:
  """Server and sites say what is wrong in a line."""
  found = files.tracebacks(logs)
  return Verdict("no traceback", [f"{log}: {end}" for log, ends in found.items() for end in ends])


def nothing_grew(early: Sequence[Sample], late: Sequence[Sample]) -> Verdict:
  """No process always has more memory, threads or files at the end than it ever had before.

  These numbers go up and down with connections: what leaks raises even the lowest of them.

  Args:
    early: samples of the beginning.
    late: samples of the end.
  """
  most, least = _extreme(early, max), _extreme(late, min)
  found = []
  for name, (memory, threads, handles) in sorted(least.items()):
    before = most.get(name)
    if before is None:
      continue  # it came too late to be compared
    if memory > before[0] * (1 + _SPARE_MEMORY):
      found.append(f"{name}: {before[0] / 1e6:.0f} to {memory / 1e6:.0f} MB")
    if threads > before[1]:
      found.append(f"{name}: {before[1]} to {threads} threads")
    if handles > before[2]:
      found.append(f"{name}: {before[2]} to {handles} files")
  return Verdict("no process grew", found)


def _extreme(samples: Sequence[Sample], of: Callable[[int, int], int]) -> dict[str, list[int]]:
  """The highest or lowest memory, threads and files of each process, by name."""
  out: dict[str, list[int]] = {}
  for sample in samples:
    for each in sample.usage:
      held = [each.memory, each.threads, each.files]
      out[each.name] = [of(*pair) for pair in zip(out.get(each.name, held), held, strict=True)]
  return out


def last_usage(samples: Sequence[Sample]) -> dict[str, Usage]:
  """What each process held when it was last seen, by name."""
  return {each.name: each for sample in samples for each in reversed(sample.usage)}


def _taken(port: int) -> list[str]:
  end = time.monotonic() + _LISTENS
  while time.monotonic() < end:
    with socket.socket() as probe:
      if probe.connect_ex(("127.0.0.1", port)):
        return []
    time.sleep(0.2)
  return [f"{port} is open"]
