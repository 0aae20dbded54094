"""Checkpoints of a run: its state after a finished round, on disk (Orbax).

This uses Orbax's v0 API. Of v1, Orbax 0.12.8 has only `orbax.checkpoint.experimental.v1`. It reads
these checkpoints (a test shows it), but its Checkpointer cannot open a folder read-only, stores
JSON as arrays, and names a missing handler where the bytes are damaged.
"""

import contextlib
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from afspl_jax.config.nested_values import differences
from afspl_jax.errors import UserError
from afspl_jax.storage.disk_errors import disk_error
from afspl_jax.storage.patient_loops import patient_loops
from afspl_jax.storage.pytrees import named_leaves

_KEEP = 2  # the newest, and one to go back to if the disk damages the newest
_DAMAGED = ".damaged"  # ends the name of a folder that was set aside; Orbax ignores it
_NOT_DAMAGE = ("PERMISSION_DENIED", "RESOURCE_EXHAUSTED")  # TensorStore's words for such errors


class CheckpointError(UserError):
  """A checkpoint that cannot be written or read."""


class DamagedCheckpoint(CheckpointError):
  """A checkpoint whose files are not those that were written.

  Args:
    message: for the user.
    reason: what is wrong with them.
  """

  def __init__(self, message: str, reason: str):
    super().__init__(message)
    self.reason = reason


class Checkpoints:
  """The checkpoints of one run: a folder per round, each complete or absent.

  Orbax writes to a temporary folder and renames it. If the process is killed while saving, the
  previous round stays the newest.

  Args:
    folder: the run's folder of checkpoints.
    read_only: change nothing in the folder, where another process may be saving; errors do not
      advise to delete anything.
  """

  def __init__(self, folder: Path | str, *, read_only: bool = False):
    self.folder, self._read_only = Path(folder).absolute(), read_only
    options = ocp.CheckpointManagerOptions(
      max_to_keep=_KEEP, enable_async_checkpointing=False, cleanup_tmp_directories=True
    )
    if read_only:
      options = ocp.CheckpointManagerOptions(
        read_only=True, create=False, save_interval_steps=0, enable_async_checkpointing=False
      )
    try:
      if not read_only:
        self.folder.mkdir(parents=True, exist_ok=True)
      # Orbax warns about a read-only folder even if it was asked for one.
      with _quiet(logging.ERROR) if read_only else contextlib.nullcontext():
        self._manager = ocp.CheckpointManager(self.folder, options=options)
    except OSError as error:
      raise CheckpointError(
        f"{self.folder}: expected a folder to write checkpoints in; got: {error}. "
        "Choose another --workdir or free it"
      ) from error

  def save(self, round: int, state: Any) -> None:
    """Saves the state after a round; it is on disk on return.

    Args:
      round: the finished round.
      state: nested dicts of arrays of any dtype, or of numbers.

    Raises:
      CheckpointError: the checkpoint cannot be written.
    """
    state = jax.tree.map(np.asarray, jax.device_get(state))
    proof = {"leaves": _leaves(state), "sha256": _sha256(state)}
    items = {"state": ocp.args.StandardSave(state), "proof": ocp.args.JsonSave(proof)}
    try:
      # Orbax's threads log what they raise, with tracebacks; it is raised here too.
      with patient_loops(), _quiet(logging.CRITICAL):
        self._manager.save(round, args=ocp.args.Composite(**items), force=True)
        self._manager.wait_until_finished()
    except (OSError, ValueError) as error:  # TensorStore raises ValueError
      refused = disk_error(self.folder / str(round), "a checkpoint", error)
      raise CheckpointError(str(refused)) from error

  def rounds(self) -> list[int]:
    """Returns the rounds with a checkpoint, oldest first."""
    return sorted(self._manager.all_steps())

  def restore(self, template: Any, round: int | None = None) -> tuple[int, Any] | None:
    """Reads the checkpoint of a round, by default the newest.

    Args:
      template: a state with the expected structure, shapes and dtypes.
      round: one of `rounds()`.

    Returns:
      The round and its state with NumPy leaves; None before the first checkpoint.

    Raises:
      CheckpointError: the checkpoint is damaged or belongs to another model.
    """
    round = self._manager.latest_step() if round is None else round
    if round is None:
      return None
    template = jax.tree.map(np.asarray, jax.device_get(template))
    try:
      # Orbax casts to the template's dtypes, returns shapes that differ from the template's, and
      # does not detect a changed byte, all without an error. The proof detects these.
      proof = self._restore(round, proof=ocp.args.JsonRestore())["proof"]
      changed = differences(proof["leaves"], _leaves(template))
      if changed:
        raise _OtherModel(f"other params: {'; '.join(changed)}")
      state = self._restore(round, state=ocp.args.StandardRestore(template))["state"]
      if proof["sha256"] != _sha256(state):
        raise ValueError("bytes that differ from the saved ones")
    except Exception as error:
      raise self._read_error(round, error) from error
    return round, state

  def restore_newest_whole(
    self, template: Any, notify: Callable[[str], None]
  ) -> tuple[int, Any] | None:
    """Reads the newest checkpoint that is not damaged; newer ones are set aside.

    Args:
      template: as for `restore`.
      notify: gets a line for every damaged checkpoint.

    Returns:
      As `restore`.

    Raises:
      CheckpointError: all are damaged, or one belongs to another model.
    """
    damaged: list[tuple[int, DamagedCheckpoint]] = []
    for round in reversed(self.rounds()):
      try:
        found = self.restore(template, round)
      except DamagedCheckpoint as damage:
        damaged.append((round, damage))
        continue
      for bad, error in damaged:
        aside = self._set_aside(bad)
        notify(
          f"{self.folder / str(bad)}: damaged ({error.reason}). It is now {aside.name}; continuing"
          f" after round {round}"
        )
      return found
    if damaged:
      raise CheckpointError(
        f"{self.folder}: expected an undamaged checkpoint; got none. The newest is damaged:"
        f" {damaged[0][1].reason}. Restore the folder from a copy, or choose another --workdir"
      )
    return None

  def close(self) -> None:
    """Waits for unfinished writes, and frees the resources of Orbax."""
    self._manager.close()

  def _restore(self, round: int, **items: Any) -> Any:
    with patient_loops(), _quiet(logging.CRITICAL):
      return self._manager.restore(round, args=ocp.args.Composite(**items))

  def _read_error(self, round: int, error: Exception) -> CheckpointError:
    advice = "Delete that folder to go on from the checkpoint before it"
    if self._read_only:  # it may be undamaged and of another run
      advice = "Leave that folder where it is. Another round may be undamaged: --round=N"
    reason = _reason(error)
    where = self.folder / str(round)
    message = f"{where}: expected a checkpoint of this model; got: {reason}. {advice}"
    other = isinstance(error, _OtherModel | MemoryError | PermissionError)
    if other or reason.startswith(_NOT_DAMAGE):
      return CheckpointError(message)
    return DamagedCheckpoint(message, reason)

  def _set_aside(self, round: int) -> Path:
    """Renames a checkpoint, so that the round can be saved again; returns its new name."""
    where = self.folder / str(round)
    aside = where.with_name(where.name + _DAMAGED)
    shutil.rmtree(aside, ignore_errors=True)  # of an earlier damage to the same round
    os.rename(where, aside)
    self._manager.reload()
    return aside


class _OtherModel(ValueError):
  """A checkpoint of other leaves."""


def _reason(error: BaseException) -> str:
  return " ".join(str(error).split())[:300]


@contextlib.contextmanager
def _quiet(least: int) -> Iterator[None]:
  """Lets only log records of Orbax from a level on pass."""
  logger = logging.getLogger("absl")
  level = logger.level
  logger.setLevel(least)
  try:
    yield
  finally:
    logger.setLevel(level)


def _leaves(state: Any) -> dict[str, str]:
  """Returns the dtype and shape of every leaf, by path."""
  return {name: f"{leaf.dtype}{leaf.shape}" for name, leaf in named_leaves(state).items()}


def _sha256(state: Any) -> str:
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(state):
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()
