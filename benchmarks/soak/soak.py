"""The time of a soak: keeps the federation running, disturbs it, and writes down what happens."""

import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from afspl_jax.storage.run_lines import METRICS
from benchmarks.soak import processes
from benchmarks.soak.federation import Federation
from benchmarks.soak.processes import Usage
from benchmarks.soak.replay import SavedStates
from benchmarks.soak.schedule import SERVER, Disturbance, disturbances

_TICK, _SAMPLE_EVERY = 0.25, 5.0  # seconds
_CALM, _CALM_ROUNDS, _CALM_SECONDS = 0.1, 30, 200.0  # at the end of a soak
STALLED = 600.0  # seconds without a finished round after which a soak gives up


@dataclass
class Sample:
  """What all processes held at one time."""

  seconds: float  # since the start
  round: int  # finished last
  usage: list[Usage]
  disk: dict[str, int]  # bytes, by part of the folder


@dataclass
class Events:
  """What happened."""

  file: Path
  begin: float = field(default_factory=time.monotonic)
  all: list[dict[str, Any]] = field(default_factory=list)

  def add(self, what: str, **details: Any) -> None:
    """Writes down an event with its time."""
    event = {"seconds": round(time.monotonic() - self.begin, 1), "what": what, **details}
    self.all.append(event)
    with self.file.open("a") as out:
      out.write(json.dumps(event) + "\n")

  def of(self, what: str) -> list[dict[str, Any]]:
    """The events of a kind."""
    return [event for event in self.all if event["what"] == what]


class Load(NamedTuple):
  """What a federation has to bear, and for how long."""

  seed: int  # decides the disturbances
  rate: float  # disturbances in a round, on average
  roles: Sequence[str]  # of the processes that are disturbed
  rounds: int  # of the run; 0: it ends by time
  seconds: float  # of the soak, if it ends by time


class Soak:
  """Runs a federation under load until it has finished, or for some time.

  Args:
    federation: is open.
    mark: of its processes.
    load: what is done to it.
    events: gets what happens.
  """

  def __init__(self, federation: Federation, mark: str, load: Load, events: Events):
    self.federation, self.events = federation, events
    self._mark, self._load = mark, load
    self._calm_from = calm_from(load.rounds, load.seconds)
    self.states = SavedStates({site: federation.states(site) for site in federation.sites})
    self.samples: list[Sample] = []
    self.stalled = False
    self.calm_rounds = 0  # finished after the last disturbance
    self._round, self._round_at = -1, time.monotonic()
    self._due: list[tuple[float, Disturbance]] = []
    self._stopped: list[tuple[float, int]] = []  # when to go on, and which process

  def run(self) -> Iterator[float]:
    """Goes on until the end; yields the share that is done, several times a second."""
    sampled = -_SAMPLE_EVERY
    try:
      while not self.federation.server.ended and not self.stalled:
        done = self._done()
        if not self._load.rounds and done >= 1.0:
          break
        yield done
        self._look(done)
        self._disturb()
        if self._now() - sampled >= _SAMPLE_EVERY:
          sampled = self._now()
          self.sample()
        time.sleep(_TICK)
    finally:
      for _, pid in self._stopped:
        _signal(pid, signal.SIGCONT)
    self.states.look()

  def sample(self) -> None:
    """Measures all processes and the folder."""
    used, disk = processes.usage(self._mark), disk_use(self.federation.folder)
    self.samples.append(Sample(round(self._now(), 1), self._round, used, disk))

  def _now(self) -> float:
    return time.monotonic() - self.events.begin

  def _done(self) -> float:
    if self._load.rounds:
      return max(self._round, 0) / self._load.rounds
    return min(self._now() / self._load.seconds, 1.0)

  def _look(self, done: float) -> None:
    for each in self.federation.supervise():
      self.events.add("exit", **each._asdict())
    self.states.look()
    newest = newest_round(self.federation.run / METRICS)
    for finished in range(self._round + 1, newest + 1):
      self.events.add("round", round=finished)
      self.calm_rounds += done >= self._calm_from
      if finished >= 1 and done < self._calm_from:
        now = time.monotonic()
        load = self._load
        drawn = disturbances(load.seed, finished, load.rate, self.federation.sites, load.roles)
        self._due += [(now + each.delay, each) for each in drawn]
    if newest > self._round:
      self._round, self._round_at = newest, time.monotonic()
    self.stalled = time.monotonic() - self._round_at > STALLED

  def _disturb(self) -> None:
    now = time.monotonic()
    for when, stopped in [each for each in self._stopped if each[0] <= now]:
      self._stopped.remove((when, stopped))
      _signal(stopped, signal.SIGCONT)
      self.events.add("go on", pid=stopped)
    for when, each in [due for due in self._due if due[0] <= now]:
      self._due.remove((when, each))
      pid = processes.pid_of(self._mark, each.process)
      if pid is None:
        self.events.add("missed", **each._asdict())
      elif each.stop:
        _signal(pid, signal.SIGSTOP)
        self._stopped.append((now + each.stop, pid))
        self.events.add("stop", pid=pid, **each._asdict())
      else:
        _signal(pid, signal.SIGKILL)
        self._stopped = [stopped for stopped in self._stopped if stopped[1] != pid]
        self.events.add("kill", pid=pid, **each._asdict())


def calm_from(rounds: int, seconds: float) -> float:
  """The share of a soak after which nothing is disturbed, so that all sites can come back.

  Args:
    rounds: of the soak; 0: it ends by time.
    seconds: of the soak, if it ends by time.
  """
  calm = _CALM_ROUNDS / rounds if rounds else _CALM_SECONDS / seconds
  return 1.0 - min(max(calm, _CALM), 0.5)


def newest_round(metrics: Path) -> int:
  """The last round in metrics.jsonl; -1 before the first."""
  if not metrics.exists():
    return -1
  with metrics.open("rb") as file:
    file.seek(max(0, metrics.stat().st_size - 16384))
    lines = file.read().split(b"\n")[:-1]
  for line in reversed(lines):
    with suppress(ValueError):
      return json.loads(line)["round"]
  return -1


def disk_use(folder: Path) -> dict[str, int]:
  """Bytes of files, by the first parts of their paths; those of all sites together."""
  out: dict[str, int] = {}
  for path, _, names in os.walk(folder):
    host, *parts = Path(path).relative_to(folder).parts or ["logs"]
    part = "/".join([host if host in (SERVER, "logs", "tmp") else "sites", *parts[:2]])
    for name in names:
      with suppress(OSError):
        out[part] = out.get(part, 0) + os.lstat(Path(path) / name).st_size
  return out


def _signal(pid: int, number: int) -> None:
  with suppress(ProcessLookupError):
    os.kill(pid, number)
