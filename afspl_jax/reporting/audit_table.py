"""An audit as tables for people."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from afspl_jax.reporting.text_table import columns, size

_MOST_CLIENTS = 40  # rows; a federation may have thousands
_WIDTH = 80  # characters of a line


def table(found: Mapping[str, Any]) -> str:
  """What `audit.audit` found, in lines of at most 80 characters for usual names."""
  clients = found["clients"]
  messages, total = (sum(line[key] for line in clients) for key in ("messages", "bytes"))
  what = f"{messages:,} messages, {size(total)}, left {len(clients):,} clients"
  out = [f"{found['run']}: {what}", ""]
  shown = sorted(clients, key=lambda line: -line["bytes"])[:_MOST_CLIENTS]
  shown.sort(key=lambda line: line["client"])
  rows: list[Sequence[str]] = [("client", "rounds", "messages", "errors", "floats", "bytes")]
  for line in shown:
    counts = (f"{line[key]:,}" for key in ("rounds", "messages", "errors", "numbers"))
    rows.append((line["client"], *counts, size(line["bytes"])))
  out += columns(rows)
  if len(shown) < len(clients):
    out.append(f"and {len(clients) - len(shown):,} that sent less: --client=NAME, or --json")
  if repeated := sum(line["repeated"] for line in clients):
    out.append(f"{repeated:,} messages are of rounds that were repeated: what left, left")
  rows = [("what left", "messages", "bytes", "what it is")]
  for line in found["names"]:
    *_, name = line["where"]
    indented = "  " * (len(line["where"]) - 1) + name
    took = size(line["bytes"]) if "bytes" in line else ""
    rows.append((indented, f"{line['messages']:,}", took, _content(line)))
  out += ["", *(line[:_WIDTH] for line in columns(rows, left_last=True))]
  down = found["down"]
  came = f"what came down: arrays of {size(down['bytes'])}; {', '.join(down['names'])}"
  return "\n".join([*out, "", *_wrapped(came), "", *_verdict(found)])


def _content(line: Mapping[str, Any]) -> str:
  if "of" in line:
    return f"{line['numbers']:,} floats, {line['rows'] / max(line['of'], 1):.0%} of rows"
  if "numbers" in line:
    return f"{line['numbers']:,} numbers, {', '.join(line['values'])}"
  if "range" in line:
    low, high = (f"{value:.4g}" for value in line["range"])
    return low if low == high else f"{low} to {high}"
  values = line.get("values", ())
  return values[0] if len(values) == 1 else f"{len(values):,} texts" if values else ""


def _verdict(found: Mapping[str, Any]) -> list[str]:
  settings = ", ".join(f"{name}={value}" for name, value in found["settings"].items())
  if found["closed"]:
    return _wrapped(f"all of it is on the closed list for {settings}")
  number = len(found["outside"])
  out = _wrapped(f"NOT CLOSED: {number:,} of what left is not on the list for {settings}")
  for line in found["outside"]:
    first = f"first {line['first']['client']}, round {line['first']['round']}"
    out += _wrapped(f"{line['what']}: {line['why']} ({line['messages']:,} messages; {first})")
  return out


def _wrapped(text: str) -> list[str]:
  return textwrap.wrap(text, _WIDTH, subsequent_indent="  ", break_on_hyphens=False)
