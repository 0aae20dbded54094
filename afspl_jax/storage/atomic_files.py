"""Files that are complete or absent, whenever the process that writes them is killed."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # matplotlib takes a second to import
  from matplotlib.figure import Figure


@contextlib.contextmanager
def replaced_file(file: Path) -> Iterator[Path]:
  """Replaces a file when the block ends; leaves it as it was if the block raises.

  The new content is on disk before it has the file's name, so that a crash of the machine leaves
  either the old content or the new.

  Args:
    file: the file to replace. It need not exist, but its folder must.

  Yields:
    A path in the same folder, to write the new content to.

  Raises:
    OSError: the disk is full, or the folder is not writable.
  """
  scratch = file.with_name(file.name + ".tmp")
  try:
    yield scratch
    with open(scratch, "rb+") as written:
      os.fsync(written.fileno())
    os.replace(scratch, file)
  except BaseException:
    with contextlib.suppress(OSError):  # the first error is the one to report
      scratch.unlink(missing_ok=True)
    raise


def write_text(file: Path, text: str) -> None:
  """Replaces a file with one that has this text; it is on disk on return."""
  with replaced_file(file) as scratch:
    scratch.write_text(text, encoding="utf-8", newline="")


def write_figure(file: Path, figure: "Figure", description: str = "") -> None:
  """Replaces a file with this figure as PNG, whose alternative text `description` is."""
  with replaced_file(file) as scratch:
    metadata = {"Description": description} if description else None
    figure.savefig(scratch, format="png", metadata=metadata)


def create_file(file: Path, data: bytes, mode: int) -> None:
  """Creates a file whose permissions are `mode` from the first moment, as a secret needs.

  Raises:
    FileExistsError: the file exists; it is left as it is.
  """
  with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as out:
    out.write(data)


def append_text(file: Path, text: str, *, sync: bool = True) -> None:
  """Adds text to the end of a file, which is created if missing.

  Args:
    file: the file.
    text: what to add; one or more whole lines.
    sync: wait until the text is on disk, and not only in the memory of the operating system.
  """
  with open(file, "a", encoding="utf-8", newline="") as out:
    out.write(text)
    if sync:
      out.flush()
      os.fsync(out.fileno())
