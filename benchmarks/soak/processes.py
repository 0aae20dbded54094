"""The processes of a soak, by a mark in their environment that children inherit."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks.soak.schedule import SERVER, SUPERLINK, supernode_of

MARK = "AFSPL_SOAK"  # environment variable


class Usage(NamedTuple):
  """What a process holds."""

  name: str
  pid: int
  started: float  # seconds since the epoch
  memory: int  # resident bytes
  threads: int
  files: int  # open file descriptors


def find(mark: str) -> dict[int, str]:
  """The running processes with a mark: names by process id, oldest first."""
  found = []
  for process in psutil.process_iter():
    with contextlib.suppress(psutil.Error, OSError):
      if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark:
        found.append((process.create_time(), process.pid, _name(process)))
  return {pid: name for _, pid, name in sorted(found)}


def usage(mark: str) -> list[Usage]:
  """What the processes with a mark hold; of equal names, the oldest process comes first."""
  out = []
  for pid, name in find(mark).items():
    with contextlib.suppress(psutil.Error, OSError):
      process = psutil.Process(pid)
      with process.oneshot():
        out.append(
          Usage(
            name,
            pid,
            process.create_time(),
            process.memory_info().rss,
            process.num_threads(),
            process.num_fds(),
          )
        )
  return out


def pid_of(mark: str, name: str) -> int | None:
  """The process with a name; None if it is not running."""
  return next((pid for pid, other in find(mark).items() if other == name), None)


def _name(process: psutil.Process) -> str:
  return name_of(process.cmdline(), process.cwd())


def name_of(command: Sequence[str], folder: str) -> str:
  """A process's name, by its command line and working folder."""
  for argument in command:
    if argument == "--role=server":
      return SERVER
    if argument.startswith("--site="):
      return argument.removeprefix("--site=")
    if argument.endswith("access_control:main"):
      return SUPERLINK
    if argument.endswith("supernode_program:main"):
      return supernode_of(Path(folder).name)
  return f"other: {' '.join(command)[:80]}"
