"""Tables for a terminal, and sizes as people read them."""

from collections.abc import Sequence


def columns(rows: Sequence[Sequence[str]], left_last: bool = False) -> list[str]:
  """Lines of cells padded to the widest of their column: the first to the left, others right.

  Args:
    rows: cells, of each row as many.
    left_last: the last column stays to the left too, as texts do.
  """
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  out = []
  for row in rows:
    cells = [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]
    if left_last:
      cells[-1] = row[-1]
    out.append("  ".join(cells).rstrip())
  return out


def size(count: int | float) -> str:
  """Bytes: `12.3 MB`."""
  for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
    if count >= scale:
      return f"{count / scale:.1f} {unit}"
  return f"{count:.0f} bytes"
