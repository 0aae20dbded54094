"""Child processes with their own log and home folder, which end with this process."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

_MAIN = "afspl_jax.federation.transport.child_main"
_ROOT = str(Path(__file__).parents[3])  # on the child's path: the package may not be installed
_GRACE = 10.0  # seconds between SIGTERM and SIGKILL
_WAITS = (1.0, 2.0, 4.0, 8.0, 15.0)  # seconds before each restart; the last one repeats
_STABLE = 60.0  # seconds of life after which the next wait is the shortest again
_LOG_TAIL = 65536  # bytes at the end of a log that are searched
_REASON_LINES = 3  # lines of output in an exit reason
_NO_REASON = re.compile(r"(\S+Z )?(DEBUG|INFO|WARNING)\b|Exit Code|For more information")
_ERROR = re.compile(r"^ERROR\s*:\s*")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class ChildProcess:
  """A command in a child process, which ends when this process ends, even if that is killed.

  Ctrl-C in the terminal does not reach it. It reaches this process, which then stops its children.

  Args:
    command: as `child_main` takes it.
    arguments: arguments of the command.
    folder: the child's working folder, with its output (`log`) and Flower's home (`flwr`); created
      if missing.
  """

  def __init__(self, command: str, arguments: Sequence[str], folder: Path):
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    self.log = folder / "log"
    self._start = time.monotonic()
    with open(self.log, "ab", opener=_open_private) as log:
      self._offset = log.tell()
      self._process = subprocess.Popen(
        [
          sys.executable,
          "-P",
          "-m",
          _MAIN,
          command,
          *arguments,
        ],
        stdin=subprocess.PIPE,  # closes with this process
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env=_environment(folder),
        start_new_session=True,
        umask=0o077,  # only the owner may read the database and the logs
      )

  @property
  def pid(self) -> int:
    """The process id."""
    return self._process.pid

  def is_running(self) -> bool:
    """Returns whether the process runs."""
    return self._process.poll() is None

  def age(self) -> float:
    """Returns the seconds since its start."""
    return time.monotonic() - self._start

  def output(self) -> str:
    """Returns the end of this process's output, without colours."""
    with open(self.log, "rb") as log:
      log.seek(max(self._offset, self.log.stat().st_size - _LOG_TAIL))
      return _COLOUR.sub("", log.read().decode(errors="replace"))

  def exit_reason(self) -> str:
    """Returns its exit status and the end of its output, in one line."""
    code = self._process.poll()
    status = f"signal {-code}" if code is not None and code < 0 else f"status {code}"
    lines = [_ERROR.sub("", line.strip()) for line in self.output().splitlines()]
    reasons = [line for line in lines if line and not _NO_REASON.match(line)]
    return f"{status}: {' '.join(reasons[-_REASON_LINES:]) or 'no output'} ({self.log})"

  def stop(self) -> None:
    """Ends the process: with SIGTERM, and with SIGKILL if it does not react."""
    self._process.terminate()
    try:
      self._process.wait(_GRACE)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    if self._process.stdin:
      self._process.stdin.close()


class SupervisedProcess:
  """A child process that is restarted when it ends, with growing waits.

  Args:
    name: its name in messages.
    start: starts the child.
    notify: gets every message for the user.
    hints: explanations, by a text in the child's output; they replace its exit reason.
  """

  def __init__(
    self,
    name: str,
    start: Callable[[], ChildProcess],
    notify: Callable[[str], None],
    hints: Mapping[str, str] = MappingProxyType({}),
  ):
    self._name, self._start, self._notify, self._hints = name, start, notify, hints
    self._failures = 0
    self._restart_at: float | None = None  # monotonic time; None while the child runs
    self.child = start()

  def restart_if_ended(self) -> None:
    """Restarts the child if it has ended and its wait is over; to be called often."""
    now = time.monotonic()
    if self._restart_at is None and not self.child.is_running():
      if self.child.age() > _STABLE:
        self._failures = 0
      wait = _WAITS[min(self._failures, len(_WAITS) - 1)]
      self._failures += 1
      self._restart_at = now + wait
      output = self.child.output()
      hint = next((hint for text, hint in self._hints.items() if text in output), None)
      reason = hint or self.child.exit_reason()
      self._notify(f"{self._name} ended, {reason}. It starts again in {wait:.0f} s")
    elif self._restart_at is not None and now >= self._restart_at:
      self._restart_at = None
      self.child.stop()  # closes its pipe
      self.child = self._start()


def _open_private(path: str | Path, flags: int) -> int:
  return os.open(path, flags, 0o600)


def _environment(folder: Path) -> dict[str, str]:
  """The child's environment: no telemetry, and no settings of the user's own Flower."""
  path = os.environ.get("PYTHONPATH")
  return {name: value for name, value in os.environ.items() if not name.startswith("FLWR_")} | {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_HOME": str(folder.absolute() / "flwr"),
    "FLWR_LOG_LEVEL": "INFO",
    "PYTHONPATH": _ROOT + (os.pathsep + path if path else ""),
    "PYTHONUNBUFFERED": "1",  # the output is complete when the child ends
  }
