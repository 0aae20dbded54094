"""A run's folder: what was asked, what was measured, and one process at a time in it.

Killed at any moment and started again, a run ends with the same lines as one never interrupted:
lines of a round are on disk before its checkpoint is, and `rewind` drops those of rounds that
have none.
"""

import contextlib
import fcntl
import importlib.metadata
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from afspl_jax.config.experiment import differences
from afspl_jax.errors import UserError
from afspl_jax.storage.atomic_files import append_text, write_text
from afspl_jax.storage.json_forms import Form, misfit
from afspl_jax.storage.json_text import parse

METRICS, CLIENTS = "metrics.jsonl", "clients.jsonl"
_SCORED: Form = {"round": int, "split": str, "*": (float, None)}
_TRAINED = _SCORED | {"seconds": float, "bytes_up": float, "bytes_down": float}
_ANSWERED: Form = {
  "round": int,
  "client": str,
  "status": str,
  "num_examples": (int, None),
  "loss": (float, None),
  "bytes_up": int,
  "seconds?": float,
}
WIRE = "wire.jsonl"  # what left the clients; never rewound (federation/wire_record.py)
_TRIES, _PAUSE = 4, 0.05  # seconds between them
_PACKAGES = (
  "afspl_jax",
  "jax",
  "flax",
  "optax",
  "orbax-checkpoint",
  "flwr",
  "transformers",
  "numpy",
)


class RunFolder:
  """An open run's folder; holds its lock until closed or until the process ends."""

  def __init__(self, path: Path, lock: int):
    self.path = path
    self._lock = lock

  @classmethod
  def open(cls, path: Path | str, config: dict[str, Any]) -> "RunFolder":
    """Creates a run's folder, or opens that of a run which is to go on.

    Quick, so that it can come before the loading of models and data, which takes long.

    Args:
      path: the folder.
      config: the resolved config, as plain nested values; kept in config.json.

    Raises:
      UserError: the folder cannot be written, another process runs in it, or it is of a run
        with another config; one line that names the fields.
    """
    path = Path(path).absolute()
    try:
      path.mkdir(parents=True, exist_ok=True)
      lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
      raise UserError(
        f"{path}: expected a folder that can be written; got: {error}. Choose another --workdir"
      ) from error
    with contextlib.ExitStack() as unless_opened:
      unless_opened.callback(os.close, lock)
      try:
        # The system drops the lock with the process, however it ends: nothing is left to clean up.
        _lock(lock)
      except BlockingIOError as error:
        raise UserError(
          f"{path}: expected no other process in this run's folder; one is running. "
          "Wait for it, or choose another --workdir"
        ) from error
      _agree(path, {"config": json.loads(json.dumps(config))})
      unless_opened.pop_all()
    return cls(path, lock)

  def agree_on(self, facts: dict[str, Any]) -> None:
    """Holds fast what else must be the same when the run goes on, in config.json.

    Args:
      facts: plain nested values, such as hashes of the frozen weights and of the partition.

    Raises:
      UserError: the run began with other facts; one line that names them.
    """
    _agree(self.path, {"facts": json.loads(json.dumps(facts))})

  def note(self, place: dict[str, Any]) -> None:
    """Adds to config.json where the run is at work, unless it was there last.

    Args:
      place: plain values, such as the devices. Not compared: a run may go on elsewhere.
    """
    file = self.path / "config.json"
    found = json.loads(file.read_text(encoding="utf-8"))
    places = found.setdefault("places", [])
    if places[-1:] != [place]:
      places.append(place)
      write_text(file, json.dumps(found, indent=2) + "\n")

  def append_metrics(self, line: dict[str, Any]) -> None:
    """Adds a line to metrics.jsonl; it is on disk when this returns."""
    self._append(METRICS, [line])

  def append_clients(self, lines: Iterable[dict[str, Any]]) -> None:
    """Adds lines to clients.jsonl; they are on disk when this returns."""
    self._append(CLIENTS, lines)

  def metrics(self) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; call `rewind` first after a restart."""
    return read_lines(self.path / METRICS)

  def clients(self) -> list[dict[str, Any]]:
    """The lines of clients.jsonl; call `rewind` first after a restart."""
    return read_lines(self.path / CLIENTS)

  def predictions(self, round: int) -> Path:
    """Where a round's predictions go; the folder exists."""
    path = self.path / "predictions" / f"round_{round:04d}.jsonl"
    path.parent.mkdir(exist_ok=True)
    return path

  def rewind(self, round: int) -> None:
    """Drops the lines of rounds after this one, and a last line that was cut short.

    Args:
      round: the last round that has a checkpoint; -1 drops every line.
    """
    for name in (METRICS, CLIENTS):
      path = self.path / name
      lines = [line for line in read_lines(path) if line["round"] <= round]
      text = "".join(_to_json(line) for line in lines)
      if path.exists() and path.read_bytes() != text.encode():
        write_text(path, text)

  def close(self) -> None:
    """Gives the folder free."""
    if self._lock >= 0:
      os.close(self._lock)
      self._lock = -1

  def __enter__(self) -> "RunFolder":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def _append(self, name: str, lines: Iterable[dict[str, Any]]) -> None:
    try:
      append_text(self.path / name, "".join(_to_json(line) for line in lines))
    except OSError as error:
      raise UserError(
        f"{self.path / name}: expected to write to it; got: {error}. Free the disk and start the"
        " same command again to go on"
      ) from error


def _lock(file: int) -> None:
  """Locks a file, also where someone holds it for a moment to see whether it is locked.

  Raises:
    BlockingIOError: another process holds it.
  """
  for _ in range(_TRIES):
    with contextlib.suppress(BlockingIOError):
      return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    time.sleep(_PAUSE)
  fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _agree(path: Path, wanted: dict[str, Any]) -> None:
  """Compares with what config.json has under the same names, and adds what it has not."""
  file = path / "config.json"
  if not file.exists():
    versions = {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}
    if (path / METRICS).exists():
      raise UserError(
        f"{path}: expected a new folder or a run's; got {METRICS} without config.json. "
        "Choose another --workdir"
      )
    found: Any = {"versions": versions}  # recorded, not compared: a run may outlive an update
  else:
    text = file.read_text(encoding="utf-8", errors="replace")
    try:
      found = parse(text)
    except ValueError as error:
      raise UserError(f"{file}: expected a run's config; got: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("config"), dict):
      raise UserError(f"{file}: expected a run's config; got: {text[:40]!r}")
  if "facts" not in found and "config" in wanted:
    # The run never began, for want of models or data: another config may still be tried.
    found.pop("config", None)
  # Fields are named bare, as the user writes them in --config.FIELD.
  shared = sorted(wanted.keys() & found.keys())
  changed = [line for name in shared for line in differences(found[name], wanted[name])]
  if changed:
    raise UserError(
      f"{path}: expected the run's own settings; changed: {'; '.join(changed)}. "
      "Undo that to go on, or choose another --workdir"
    )
  if wanted.keys() - found.keys():
    write_text(file, json.dumps(wanted | found, indent=2) + "\n")


def version(package: str) -> str:
  """The installed version of a package."""
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return "not installed"  # run from a checkout


def read_lines(path: Path) -> list[dict[str, Any]]:
  """The lines of a run's file, but for a last one that was cut short.

  Raises:
    UserError: a line that is no JSON object; names file and line.
  """
  if not path.exists():
    return []
  lines = []
  # What follows the last newline was cut short, perhaps inside a character: split first.
  for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
    try:
      found = parse(line)
    except ValueError as error:
      raise UserError(f"{path}:{number}: expected a JSON object; got: {error}") from error
    if not isinstance(found, dict):
      raise UserError(f"{path}:{number}: expected a JSON object; got: {str(found)[:40]!r}")
    lines.append(found)
  return lines


def read_metrics(path: Path) -> list[dict[str, Any]]:
  """The lines of the metrics.jsonl of a folder.

  Raises:
    UserError: a line that no run writes; names file and line.
  """
  form = lambda line: _TRAINED if line.get("split") == "train" else _SCORED  # noqa: E731
  return _read_formed(path / METRICS, form)


def read_clients(path: Path) -> list[dict[str, Any]]:
  """The lines of the clients.jsonl of a folder.

  Raises:
    UserError: a line that no run writes; names file and line.
  """
  return _read_formed(path / CLIENTS, lambda line: _ANSWERED)


def _read_formed(file: Path, form: Callable[[dict[str, Any]], Form]) -> list[dict[str, Any]]:
  lines = read_lines(file)
  for number, line in enumerate(lines, start=1):
    if fault := misfit(line, form(line)):
      raise UserError(f"{file}:{number}: expected a line as a run writes it; got one where {fault}")
  return lines


def _to_json(line: dict[str, Any]) -> str:
  # JSON has no NaN: a score that is not finite is written as null.
  finite = {
    key: None if isinstance(value, float) and not math.isfinite(value) else value
    for key, value in line.items()
  }
  return json.dumps(finite, ensure_ascii=False) + "\n"
