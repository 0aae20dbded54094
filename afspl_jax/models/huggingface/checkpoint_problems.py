"""The problems of a checkpoint folder, collected and told in one error."""

from pathlib import Path

from afspl_jax.errors import UserError
from afspl_jax.storage.file_format import HEAD, file_format

FETCH = "Download the complete checkpoint again."

_SHOWN, _LONGEST = 50, 1000  # problems in a message, and characters of one


class BackboneError(UserError):
  """A checkpoint folder has problems; the message lists all of them.

  Attributes:
    problems: one text for each: what was expected, what was found and what to do.
  """

  def __init__(self, folder: Path, problems: list[str]):
    self.problems = tuple(problems)
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    shown = [text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..." for text in problems]
    if len(shown) > _SHOWN:
      shown[_SHOWN:] = [f"and {len(shown) - _SHOWN} more"]
    super().__init__("\n- ".join([f"{folder}: {count} in this checkpoint", *shown]))


def no_file(name: str) -> str:
  """The problem of a file that is missing."""
  return f"{name}: expected this file; got none. {FETCH}"


def unreadable_file(file: Path, wanted: str, error: Exception) -> str:
  """The problem of a file whose content is not what its name says.

  Args:
    file: the file.
    wanted: its format, without an article.
    error: why it cannot be read.
  """
  size = file.stat().st_size
  return other_format(file, f"a {wanted}") or (
    f"{file.name}: expected a complete {wanted}; got {size} bytes that cannot be read ({error})."
    f" {FETCH}"
  )


def other_format(file: Path, wanted: str) -> str:
  """The problem of a file that has another format than its name says; "" if this is not known."""
  with file.open("rb") as opened:
    known = file_format(opened.read(HEAD))
  # Damaged, or a header of safetensors.
  if known is None or known.name in ("a JSON file", wanted):
    return ""
  do = FETCH if known.placeholder else "Take the file of the checkpoint, or convert it."
  return f"{file.name}: expected {wanted}; got {known.name}. {do}"
