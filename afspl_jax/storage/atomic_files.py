"""Files that are written whole or not at all."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # takes a second
  from matplotlib.figure import Figure


def write_text(file: Path, text: str) -> None:
  """Replaces a file by one with this text; on disk when it returns."""
  scratch = file.with_name(file.name + ".tmp")
  with open(scratch, "w", encoding="utf-8") as out:
    out.write(text)
    out.flush()
    os.fsync(out.fileno())
  os.replace(scratch, file)


def write_figure(file: Path, figure: "Figure") -> None:
  """Replaces a file by one with this figure as PNG."""
  scratch = file.with_name(file.name + ".tmp")
  figure.savefig(scratch, format="png")
  os.replace(scratch, file)
