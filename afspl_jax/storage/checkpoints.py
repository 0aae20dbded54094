"""Checkpoints of a run: its state after a finished round, on disk (Orbax)."""

import contextlib
import hashlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from afspl_jax.config.nested_values import differences
from afspl_jax.errors import UserError
from afspl_jax.storage.pytrees import named_leaves

_KEEP = 2  # the newest, and one for the user to go back to if the disk damages the newest


class CheckpointError(UserError):
  """A checkpoint that cannot be written or read."""


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
      with _quiet() if read_only else contextlib.nullcontext():
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
    try:
      self._manager.save(
        round,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state),
          proof=ocp.args.JsonSave({"leaves": _leaves(state), "sha256": _sha256(state)}),
        ),
        force=True,
      )
      self._manager.wait_until_finished()
    except (OSError, ValueError) as error:  # TensorStore raises ValueError
      reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
      free = shutil.disk_usage(self.folder).free
      raise CheckpointError(
        f"{self.folder / str(round)}: expected to write a checkpoint; got ({free:,} bytes free):"
        f" {reason}. Free the disk and start the same command again to go on"
      ) from error

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
    where = self.folder / str(round)
    template = jax.tree.map(np.asarray, jax.device_get(template))
    try:
      # Orbax casts to the template's dtypes, returns shapes that differ from the template's, and
      # does not detect a changed byte, all without an error. The proof detects these.
      proof = self._restore(round, proof=ocp.args.JsonRestore())["proof"]
      changed = differences(proof["leaves"], _leaves(template))
      if changed:
        raise ValueError(f"other params: {'; '.join(changed)}")
      state = self._restore(round, state=ocp.args.StandardRestore(template))["state"]
      if proof["sha256"] != _sha256(state):
        raise ValueError("bytes that differ from the saved ones")
    except Exception as error:
      advice = "Delete that folder to go on from the checkpoint before it"
      if self._read_only:  # it may be undamaged and of another run
        advice = "Leave that folder where it is. Another round may be undamaged: --round=N"
      raise CheckpointError(
        f"{where}: expected a checkpoint of this model; got: {str(error).strip()[:300]}. {advice}"
      ) from error
    return round, state

  def close(self) -> None:
    """Waits for unfinished writes, and frees the resources of Orbax."""
    self._manager.close()

  def _restore(self, round: int, **items: Any) -> Any:
    return self._manager.restore(round, args=ocp.args.Composite(**items))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  logger = logging.getLogger("absl")
  level = logger.level
  logger.setLevel(logging.ERROR)
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
