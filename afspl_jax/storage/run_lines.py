"""The lines that a run writes, one JSON object each: their files, reading and checking them.

The last line of a file may be incomplete: its process may have been killed, or may be writing it.
Readers ignore such a line.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from afspl_jax.errors import UserError
from afspl_jax.storage.json_shape import JsonShape, find_mismatch
from afspl_jax.storage.json_text import parse_json

METRICS = "metrics.jsonl"  # a line per evaluation
CLIENTS = "clients.jsonl"  # a line per client and round
WIRE = "wire.jsonl"  # the disclosure log (federation/protocol/disclosure_log.py); never shortened

_START = "val", 0  # split and round of the line before the first round

_EVALUATION: JsonShape = {"round": int, "split": str, "*": (float, None)}
_TRAINING: JsonShape = _EVALUATION | {"seconds": float, "bytes_up": float, "bytes_down": float}
_CLIENT: JsonShape = {
  "round": int,
  "client": str,
  "status": str,
  "num_examples": (int, None),
  "loss": (float, None),
  "bytes_up": int,
  "seconds?": float,
}

RunLine = dict[str, Any]


def read_lines(file: Path) -> list[RunLine]:
  """Reads the complete lines of a file; a missing file has none.

  Raises:
    UserError: a line is not a JSON object.
  """
  if not file.exists():
    return []
  lines = []
  # Split bytes, not text: an incomplete last line may end inside a character.
  for number, text in enumerate(file.read_bytes().split(b"\n")[:-1], start=1):
    try:
      line = parse_json(text)
    except ValueError as error:
      raise UserError(f"{file}:{number}: expected a JSON object; got: {error}") from error
    if not isinstance(line, dict):
      raise UserError(f"{file}:{number}: expected a JSON object; got: {str(line)[:40]!r}")
    lines.append(line)
  return lines


def read_metrics(folder: Path) -> list[RunLine]:
  """Reads metrics.jsonl of a run's folder, and checks every line.

  Raises:
    UserError: a line is not one that a run writes.
  """
  shape = lambda line: _TRAINING if line.get("split") == "train" else _EVALUATION  # noqa: E731
  return _read_checked(folder / METRICS, shape)


def read_clients(folder: Path) -> list[RunLine]:
  """Reads clients.jsonl of a run's folder, and checks every line.

  Raises:
    UserError: a line is not one that a run writes.
  """
  return _read_checked(folder / CLIENTS, lambda line: _CLIENT)


def training_bytes(metrics: Iterable[Mapping[str, Any]]) -> tuple[int | float, int | float]:
  """The bytes that clients sent and received in training, and before the first round."""
  places = ((line["split"], line["round"], line) for line in metrics)
  counted = [line for split, round, line in places if split == "train" or (split, round) == _START]
  up, down = ([line.get(key) or 0 for line in counted] for key in ("bytes_up", "bytes_down"))
  return sum(up), sum(down)


def to_text(line: RunLine) -> str:
  """Returns a line as text, with its newline. Numbers that are not finite become null."""
  finite = {
    key: None if isinstance(value, float) and not math.isfinite(value) else value
    for key, value in line.items()
  }
  return json.dumps(finite, ensure_ascii=False) + "\n"


def _read_checked(file: Path, shape: Callable[[RunLine], JsonShape]) -> list[RunLine]:
  lines = read_lines(file)
  for number, line in enumerate(lines, start=1):
    if mismatch := find_mismatch(line, shape(line)):
      raise UserError(
        f"{file}:{number}: expected a line of a run; got one in which {mismatch}. Restore the file"
        " from a copy, or use another run"
      )
  return lines
