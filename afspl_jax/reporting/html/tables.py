"""Tables as pages show them, and numbers as people read them."""

from collections.abc import Sequence
from dataclasses import dataclass

Number = int | float


@dataclass(frozen=True)
class Table:
  """Rows of texts, the first of each being what the row is about."""

  caption: str
  head: Sequence[str]
  rows: Sequence[Sequence[str]]
  words: frozenset[int] = frozenset()  # columns of texts; all others but the first are numbers


def number(value: Number | None, digits: int = 3) -> str:
  """A score or a loss; "–" where there is none."""
  return "–" if value is None else f"{value:.{digits}f}"


def duration(seconds: Number) -> str:
  """A time: `3 min 12 s`."""
  if seconds < 60:
    return f"{seconds:.1f} s"
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
