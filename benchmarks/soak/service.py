"""A command that is started again whenever it ends, as systemd does for an operator."""

import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

_RESTART_AFTER = 1.0  # seconds


class Exit(NamedTuple):
  """An end of a service's process."""

  name: str
  status: int  # negative: the signal
  said: str  # last line of its output


class Service:
  """A command with its output in a file.

  Args:
    name: of the process.
    command: with its arguments.
    log: its output is added here.
    environment: its environment variables.
    folder: its working folder.
  """

  def __init__(
    self,
    name: str,
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    folder: Path,
  ):
    self.name, self.log = name, log
    self._command, self._environment, self._folder = list(command), dict(environment), folder
    self._process: subprocess.Popen | None = None
    self._start_at = 0.0  # on the monotonic clock
    self.ended = False  # with success: it is not started again

  def supervise(self) -> Exit | None:
    """Starts the process if it is time to; returns its end if it has just ended."""
    if self.ended:
      return None
    if self._process is None:
      if time.monotonic() >= self._start_at:
        self._start()
      return None
    status = self._process.poll()
    if status is None:
      return None
    self._process, self._start_at = None, time.monotonic() + _RESTART_AFTER
    self.ended = status == 0
    return Exit(self.name, status, last_line(self.log))

  def terminate(self) -> None:
    """Sends SIGTERM; `wait` returns how it ended."""
    if self._process is not None:
      self._process.terminate()

  def wait(self, seconds: float) -> int | None:
    """Waits for the end, and kills the process if it takes too long.

    Returns:
      Its status; None if it was not running.
    """
    if self._process is None:
      return None
    try:
      return self._process.wait(seconds)
    except subprocess.TimeoutExpired:
      self._process.kill()
      return self._process.wait()
    finally:
      self._process = None

  def _start(self) -> None:
    with self.log.open("ab") as out:
      self._process = subprocess.Popen(
        self._command,
        cwd=self._folder,
        env=self._environment,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.STDOUT,
      )


def last_line(log: Path) -> str:
  """Returns the last line of a log with text in it; a progress bar's line is not one."""
  text = log.read_bytes()[-65536:].decode(errors="replace")
  lines = [line.split("\r")[-1].strip() for line in text.splitlines()]
  return next((line for line in reversed(lines) if line and "round/s" not in line), "")[:500]
