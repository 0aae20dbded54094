"""What is fuzzed: a file that a reader of the package is given, among files that are sound."""

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from afspl_jax.errors import UserError

LONGEST = 20_000  # characters of a line of a message


@dataclass(frozen=True)
class Target:
  """A reader, and a valid input of it.

  Attributes:
    make: writes valid files into a folder.
    file: the one of them whose bytes are hostile.
    read: reads the folder.
    clear: errors that it may end in.
    cost: seconds a reading, about; how often CI tries it follows from it.
  """

  make: Callable[[Path], None]
  file: str
  read: Callable[[Path], object]
  clear: tuple[type[Exception], ...] = (UserError,)
  cost: float = 0.001


@functools.cache
def folder(target: Target) -> Path:
  """A folder with the target's valid files, for the rest of the process."""
  path = Path(tempfile.mkdtemp(prefix="fuzz"))
  target.make(path)
  return path


@functools.cache
def seed(target: Target) -> bytes:
  """The valid bytes."""
  return (folder(target) / target.file).read_bytes()


def tell(target: Target, data: bytes) -> str:
  """What the reader says of the bytes; "" if it takes them.

  Raises:
    Exception: it is none of those that the reader may end in.
  """
  path = folder(target)
  seed(target)
  (path / target.file).write_bytes(data)
  try:
    target.read(path)
  except target.clear as error:
    said = str(error)
    assert said.strip() and len(said) <= LONGEST, f"{len(said)} characters: {said[:200]}"
    return said
  return ""
