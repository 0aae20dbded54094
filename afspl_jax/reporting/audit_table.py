"""Formats an audit as tables for the terminal."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from afspl_jax.reporting.text_table import align_columns, format_bytes

_MOST_CLIENTS = 40  # rows; a federation can have thousands of clients
_WIDTH = 80  # characters in a line


def format_audit(report: Mapping[str, Any]) -> str:
  """The result of `audit_run`, in lines of at most 80 characters unless names are long."""
  clients = report["clients"]
  messages, total = (sum(line[key] for line in clients) for key in ("messages", "bytes"))
  head = f"{len(clients):,} clients sent {messages:,} messages, {format_bytes(total)}"
  out = [f"{report['run']}: {head}", ""]
  shown = sorted(clients, key=lambda line: -line["bytes"])[:_MOST_CLIENTS]
  shown.sort(key=lambda line: line["client"])
  rows: list[Sequence[str]] = [("client", "rounds", "messages", "errors", "floats", "bytes")]
  for line in shown:
    counts = (f"{line[key]:,}" for key in ("rounds", "messages", "errors", "numbers"))
    rows.append((line["client"], *counts, format_bytes(line["bytes"])))
  out += align_columns(rows)
  if len(shown) < len(clients):
    out.append(
      f"and {len(clients) - len(shown):,} clients that sent less: --client=NAME, or --json"
    )
  if repeated := sum(line["repeated"] for line in clients):
    out.append(f"{repeated:,} messages belong to repeated rounds; every sent message counts")
  rows = [("outgoing messages", "count", "bytes", "content")]
  for line in report["names"]:
    *_, name = line["where"]
    indented = "  " * (len(line["where"]) - 1) + name
    sent = format_bytes(line["bytes"]) if "bytes" in line else ""
    rows.append((indented, f"{line['messages']:,}", sent, _content(line)))
  out += ["", *(line[:_WIDTH] for line in align_columns(rows, left_last=True))]
  down = report["down"]
  received = f"received: arrays of {format_bytes(down['bytes'])}; {', '.join(down['names'])}"
  return "\n".join([*out, "", *_wrapped(received), "", *_verdict(report)])


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


def _verdict(report: Mapping[str, Any]) -> list[str]:
  settings = ", ".join(f"{name}={value}" for name, value in report["settings"].items())
  if report["closed"]:
    return _wrapped(f"every outgoing value is on the allow-list for {settings}")
  number = len(report["outside"])
  out = _wrapped(
    f"NOT ALLOWED: {number:,} outgoing values are not on the allow-list for {settings}"
  )
  for line in report["outside"]:
    first = f"first {line['first']['client']}, round {line['first']['round']}"
    out += _wrapped(f"{line['what']}: {line['why']} ({line['messages']:,} messages; {first})")
  return out


def _wrapped(text: str) -> list[str]:
  return textwrap.wrap(text, _WIDTH, subsequent_indent="  ", break_on_hyphens=False)
