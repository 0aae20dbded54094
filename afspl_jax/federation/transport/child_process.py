"""Child processes: started with a log and a home of their own, ended with us, kept alive."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

_MAIN = "afspl_jax.federation.transport.child_main"
_ROOT = str(Path(__file__).parents[3])  # of the package, which need not be installed
_GRACE = 10.0  # seconds between SIGTERM and SIGKILL
_WAITS = (1.0, 2.0, 4.0, 8.0, 15.0)  # seconds before a new start; the last one again and again
_STEADY = 60.0  # seconds after which a child is taken to have started well
_TAIL = 65536  # bytes of a log that are looked at
_LINES = 3  # of an ended child's last words
_IDLE = re.compile(r"(\S+Z )?(DEBUG|INFO|WARNING)\b|Exit Code|For more information")  # no reasons
_ERROR = re.compile(r"^ERROR\s*:\s*")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Child:
  """A command in a process of its own, which ends when this process ends, be it killed.

  It does not see the terminal's Ctrl-C: that is for this process, which then ends its children.

  Args:
    command: as in_child.py takes it.
    arguments: of the command.
    folder: the child's working folder, with what it writes to its terminal (`log`) and
      Flower's home (`flwr`); made if missing.
  """

  def __init__(self, command: str, arguments: Sequence[str], folder: Path):
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    self.log = folder / "log"
    self._begin = time.monotonic()
    with open(self.log, "ab", opener=_for_its_owner) as log:
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
        umask=0o077,  # the database and the logs are for the owner alone
      )

  @property
  def pid(self) -> int:
    """The process id."""
    return self._process.pid

  def alive(self) -> bool:
    """Whether it runs."""
    return self._process.poll() is None

  def seconds(self) -> float:
    """Since it was started."""
    return time.monotonic() - self._begin

  def output(self) -> str:
    """The end of what this child wrote to its terminal, without colours."""
    with open(self.log, "rb") as log:
      log.seek(max(self._offset, self.log.stat().st_size - _TAIL))
      return _COLOUR.sub("", log.read().decode(errors="replace"))

  def why(self) -> str:
    """How it ended and its last words, in one line."""
    code = self._process.poll()
    how = f"signal {-code}" if code is not None and code < 0 else f"status {code}"
    lines = [_ERROR.sub("", line.strip()) for line in self.output().splitlines()]
    words = [line for line in lines if line and not _IDLE.match(line)]
    return f"{how}: {' '.join(words[-_LINES:]) or 'it said nothing'} ({self.log})"

  def end(self) -> None:
    """Ends it: in good order if it can, by force if it does not."""
    self._process.terminate()
    try:
      self._process.wait(_GRACE)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    if self._process.stdin:
      self._process.stdin.close()


class Kept:
  """A child that is started again when it dies, after ever longer waits.

  Args:
    name: for the user.
    start: starts the child.
    say: tells the user.
    hints: what to tell instead of the child's last words where these contain a text.
  """

  def __init__(
    self,
    name: str,
    start: Callable[[], Child],
    say: Callable[[str], None],
    hints: Mapping[str, str] = MappingProxyType({}),
  ):
    self._name, self._start, self._say, self._hints = name, start, say, hints
    self._failures = 0
    self._due: float | None = None  # of the next start, on the monotonic clock; None: it runs
    self.child = start()

  def check(self) -> None:
    """Starts the child again, if it is dead and its time has come; to be called often."""
    now = time.monotonic()
    if self._due is None and not self.child.alive():
      steady = self.child.seconds() > _STEADY
      self._failures = 0 if steady else self._failures
      wait = _WAITS[min(self._failures, len(_WAITS) - 1)]
      self._failures += 1
      self._due = now + wait
      output = self.child.output()
      hint = next((hint for text, hint in self._hints.items() if text in output), None)
      self._say(f"{self._name} ended, {hint or self.child.why()}. It starts again in {wait:.0f} s")
    elif self._due is not None and now >= self._due:
      self._due = None
      self.child.end()  # its pipe
      self.child = self._start()


def _for_its_owner(path: str | Path, flags: int) -> int:
  return os.open(path, flags, 0o600)


def _environment(folder: Path) -> dict[str, str]:
  """What a child sees: nothing calls home, and nothing of the user's Flower is read."""
  path = os.environ.get("PYTHONPATH")
  return {name: value for name, value in os.environ.items() if not name.startswith("FLWR_")} | {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_HOME": str(folder.absolute() / "flwr"),
    "FLWR_LOG_LEVEL": "INFO",
    "PYTHONPATH": _ROOT + (os.pathsep + path if path else ""),
    "PYTHONUNBUFFERED": "1",  # its last words are what we tell the user
  }
