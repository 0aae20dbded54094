"""Tables of a page, and readable numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

Number = int | float


@dataclass(frozen=True)
class Table:
  """Rows of text; the first cell of each row is its heading."""

  caption: str
  head: Sequence[str]
  rows: Sequence[Sequence[str]]
  words: frozenset[int] = frozenset()  # columns of text; all others except the first are numbers


def format_number(value: Number | None, digits: int = 3) -> str:
  """A score or a loss; "–" if there is none."""
  return "–" if value is None else f"{value:.{digits}f}"


def format_duration(seconds: Number) -> str:
  """A duration such as `3 min 12 s`."""
  if seconds < 60:
    return f"{seconds:.1f} s"
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
