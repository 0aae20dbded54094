"""Prints results as a Markdown table, and writes them as JSON."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.compare import OURS, Measured, Spread


@dataclass
class Line:
  """The result of one kind of work."""

  work: str
  ours: Spread | None = None  # in `unit`
  unit: str = "s"
  ratios: dict[str, Spread] = field(default_factory=dict)  # other side's time over ours
  floor: float | None = None  # in `unit`: the shortest possible time on this machine
  note: str = ""
  details: dict[str, Any] = field(default_factory=dict)  # only in the JSON


def compared(
  work: str,
  measured: Measured,
  *,
  each: float = 1.0,
  unit: str = "s",
  floor: float | None = None,
  note: str = "",
) -> Line:
  """Makes a line of several sides; `each` converts times and floor from seconds to `unit`."""
  times = {side: [each * x for x in seconds] for side, seconds in measured.seconds.items()}
  time = measured.time(OURS)
  return Line(
    work,
    Spread(*(each * x for x in time)),
    unit,
    {side: measured.ratio(side) for side in measured.seconds if side != OURS},
    None if floor is None else each * floor,
    note,
    {"times": times, "peak_bytes": measured.peaks},
  )


def markdown(title: str, lines: list[Line]) -> str:
  """Returns a table of the lines, with a column for each other side that has times."""
  sides = list(dict.fromkeys(side for line in lines for side in line.ratios))
  head = ["work", OURS, *(f"{side} / ours" for side in sides), "floor", "of the floor", ""]
  rows = [head, ["---"] * len(head)]
  for line in lines:
    ours = "" if line.ours is None else f"{_number(line.ours.median)} {line.unit}"
    share = ""
    if line.floor and line.ours:
      share = f"{line.floor / line.ours.median:.0%}"
    rows.append(
      [
        line.work,
        ours,
        *(_ratio(line.ratios.get(side)) for side in sides),
        "" if line.floor is None else f"{_number(line.floor)} {line.unit}",
        share,
        line.note,
      ]
    )
  used = [i for i in range(len(head)) if any(row[i] for row in rows[2:])]
  return f"### {title}\n\n" + "\n".join(
    "| " + " | ".join(row[i] for i in used) + " |" for row in rows
  )


def write(file: Path, machine: dict[str, Any], results: dict[str, list[Line]]) -> None:
  """Writes all measurements, with every turn."""
  out = {name: [dataclasses.asdict(line) for line in lines] for name, lines in results.items()}
  file.write_text(json.dumps({"machine": machine, "results": out}, indent=1) + "\n")


def _ratio(ratio: Spread | None) -> str:
  if ratio is None:
    return ""
  if ratio.low == ratio.high:
    return f"**{ratio.median:.2f} ×**"
  return f"**{ratio.median:.2f} ×** ({ratio.low:.2f}–{ratio.high:.2f})"


def _number(x: float) -> str:
  return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"
