"""A run's folder, open for one process at a time: its settings and the lines that it writes.

A run that is killed at any moment and started again writes the same lines as one that was not
interrupted: the lines of a round are on disk before its checkpoint, and `rewind` deletes the lines
of rounds without a checkpoint.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from afspl_jax.config.nested_values import differences
from afspl_jax.errors import UserError
from afspl_jax.storage.atomic_files import append_text, write_text
from afspl_jax.storage.disk_errors import disk_error
from afspl_jax.storage.json_text import parse_json
from afspl_jax.storage.run_lines import CLIENTS, METRICS, RunLine, read_lines, to_text
from afspl_jax.storage.versions import installed_versions

_CONFIG, _LOCK = "config.json", "lock"
_LOCK_TRIES, _LOCK_PAUSE = 4, 0.05  # seconds between tries


class RunFolder:
  """A run's open folder. It is locked until it is closed or the process ends."""

  def __init__(self, path: Path, lock: int):
    self.path = path
    self._lock = lock

  @classmethod
  def open(cls, path: Path | str, config: dict[str, Any]) -> "RunFolder":
    """Creates a run's folder, or opens the folder of a run that is to continue.

    It is fast, and so can come before models and data are loaded.

    Args:
      path: the folder.
      config: the resolved config as plain nested values, for config.json.

    Raises:
      UserError: the folder is not writable, another process uses it, or its run has another config.
    """
    path = Path(path).absolute()
    try:
      path.mkdir(parents=True, exist_ok=True)
      lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
      raise UserError(
        f"{path}: expected a folder that can be written; got: {error}. Choose another --workdir"
      ) from error
    with contextlib.ExitStack() as unless_opened:
      unless_opened.callback(os.close, lock)
      try:
        # The system releases the lock when the process ends, in whatever way.
        _acquire(lock)
      except BlockingIOError as error:
        raise UserError(
          f"{path}: expected no other process in this run's folder; one is running. "
          "Wait for it, or choose another --workdir"
        ) from error
      _require_same(path, {"config": json.loads(json.dumps(config))})
      unless_opened.pop_all()
    return cls(path, lock)

  def require_same(self, facts: dict[str, Any]) -> None:
    """Records facts in config.json, or compares them with the recorded ones.

    Args:
      facts: plain nested values that must not change during a run, such as hashes of the frozen
        weights and of the partition.

    Raises:
      UserError: the run has recorded other facts.
    """
    _require_same(self.path, {"facts": json.loads(json.dumps(facts))})

  def record_place(self, place: dict[str, Any]) -> None:
    """Adds to config.json where the run executes, if that differs from the last time.

    Args:
      place: plain values, such as the devices. They may change during a run.
    """
    file = self.path / _CONFIG
    recorded = json.loads(file.read_text(encoding="utf-8"))
    places = recorded.setdefault("places", [])
    if places[-1:] != [place]:
      places.append(place)
      write_text(file, json.dumps(recorded, indent=2) + "\n")

  def append_metrics(self, line: RunLine) -> None:
    """Adds a line to metrics.jsonl; it is on disk on return."""
    self._append(METRICS, [line])

  def append_clients(self, lines: Iterable[RunLine]) -> None:
    """Adds lines to clients.jsonl; they are on disk on return."""
    self._append(CLIENTS, lines)

  def metrics(self) -> list[RunLine]:
    """Returns the lines of metrics.jsonl; call `rewind` first after a restart."""
    return read_lines(self.path / METRICS)

  def clients(self) -> list[RunLine]:
    """Returns the lines of clients.jsonl; call `rewind` first after a restart."""
    return read_lines(self.path / CLIENTS)

  def predictions_file(self, round: int) -> Path:
    """Returns the file for a round's predictions; its folder exists."""
    path = self.path / "predictions" / f"round_{round:04d}.jsonl"
    path.parent.mkdir(exist_ok=True)
    return path

  def rewind(self, round: int) -> None:
    """Deletes the lines of later rounds, and an incomplete last line.

    Args:
      round: the last round with a checkpoint; -1 deletes every line.
    """
    for name in (METRICS, CLIENTS):
      path = self.path / name
      lines = [line for line in read_lines(path) if line["round"] <= round]
      text = "".join(map(to_text, lines))
      if path.exists() and path.read_bytes() != text.encode():
        write_text(path, text)

  def close(self) -> None:
    """Releases the folder."""
    if self._lock >= 0:
      os.close(self._lock)
      self._lock = -1

  def __enter__(self) -> "RunFolder":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def _append(self, name: str, lines: Iterable[RunLine]) -> None:
    try:
      append_text(self.path / name, "".join(map(to_text, lines)))
    except OSError as error:
      raise disk_error(self.path / name, "to it", error) from error


def _acquire(lock: int) -> None:
  """Locks a file; tries again, because a reader locks it for a moment to see if a run is active.

  Raises:
    BlockingIOError: another process holds the lock.
  """
  for _ in range(_LOCK_TRIES):
    with contextlib.suppress(BlockingIOError):
      return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    time.sleep(_LOCK_PAUSE)
  fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _require_same(path: Path, values: dict[str, Any]) -> None:
  """Compares values with those of the same name in config.json, and adds the missing ones."""
  file = path / _CONFIG
  recorded = _read_config(file) if file.exists() else _new_config(path)
  if "facts" not in recorded and "config" in values:
    # The run did not start, because models or data were missing: its config may still change.
    recorded.pop("config", None)
  # The message names fields without "config.", as the user writes them in --config.FIELD.
  common = sorted(values.keys() & recorded.keys())
  changed = [line for name in common for line in differences(recorded[name], values[name])]
  if changed:
    raise UserError(
      f"{path}: expected the run's own settings; changed: {'; '.join(changed)}. "
      "Undo the change to go on, or choose another --workdir"
    )
  if values.keys() - recorded.keys():
    write_text(file, json.dumps(values | recorded, indent=2) + "\n")


def _new_config(path: Path) -> dict[str, Any]:
  if (path / METRICS).exists():
    raise UserError(
      f"{path}: expected a new folder or a run's; got {METRICS} without {_CONFIG}. "
      "Choose another --workdir"
    )
  return {"versions": installed_versions()}  # not compared: a run may outlive an update


def _read_config(file: Path) -> dict[str, Any]:
  text = file.read_text(encoding="utf-8", errors="replace")
  try:
    recorded = parse_json(text)
  except ValueError as error:
    raise UserError(f"{file}: expected a run's config; got: {error}") from error
  if not isinstance(recorded, dict) or not isinstance(recorded.get("config"), dict):
    raise UserError(f"{file}: expected a run's config; got: {text[:40]!r}")
  return recorded
