"""What a user is told when a file cannot be written: the file, the free space, what to do."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from afspl_jax.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)  # of an OSError: no space left, or none for this user
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_LONGEST = 200  # characters of a reason


def disk_error(file: Path, what: str, error: Exception, *, more: str = "") -> UserError:
  """The error to raise when the disk refuses a file, in one line.

  Args:
    file: that cannot be written; it need not exist.
    what: is in it.
    error: of the disk.
    more: a sentence that comes before the advice.
  """
  reason = _reason(error)
  forbidden = any(os.strerror(code) in reason for code in _FORBIDDEN)
  advice = "Allow writing there" if forbidden else "Free the disk"
  return UserError(
    f"{file}: expected to write {what}; got: {reason} ({_free(file)})."
    f" {more}{advice} and start the same command again to go on"
  )


@contextlib.contextmanager
def full_disk_in_one_line(folder: Path) -> Iterator[None]:
  """Makes a full disk a UserError wherever it is met.

  Args:
    folder: is named if the system names no file.

  Raises:
    UserError: the disk is full.
  """
  try:
    yield
  except OSError as error:
    if error.errno not in _FULL:
      raise
    raise disk_error(Path(error.filename or folder).absolute(), "to it", error) from error


def _reason(error: Exception) -> str:
  """The system's words, which TensorStore puts behind many paths; or the first line."""
  words = (os.strerror(code) for code in (*_FULL, *_FORBIDDEN))
  said = next((each for each in words if each in str(error)), str(error)) or type(error).__name__
  return said.splitlines()[0][:_LONGEST]


def _free(file: Path) -> str:
  try:
    folder = next(folder for folder in file.absolute().parents if folder.exists())
    return f"{shutil.disk_usage(folder).free:,} bytes free"
  except OSError:  # the error that is reported matters more
    return "free space unknown"
