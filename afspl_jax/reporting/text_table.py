"""Aligned tables for the terminal, and readable sizes."""

from collections.abc import Sequence


def align_columns(rows: Sequence[Sequence[str]], left_last: bool = False) -> list[str]:
  """Lines with aligned columns: the first to the left, the others to the right.

  Args:
    rows: rows with the same number of cells.
    left_last: whether the last column is aligned to the left, too.
  """
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  out = []
  for row in rows:
    cells = [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]
    if left_last:
      cells[-1] = row[-1]
    out.append("  ".join(cells).rstrip())
  return out


def format_bytes(count: int | float) -> str:
  """A number of bytes such as `12.3 MB`."""
  for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
    if count >= scale:
      return f"{count / scale:.1f} {unit}"
  return f"{count:.0f} bytes"
