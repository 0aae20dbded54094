"""The status of a federation, from its run folder alone."""

import fcntl
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from afspl_jax.errors import UserError
from afspl_jax.evaluation.scores import ANSWERS
from afspl_jax.reporting.text_table import align_columns
from afspl_jax.storage.client_status import Outcome, parse_status
from afspl_jax.storage.json_text import parse_json
from afspl_jax.storage.run_lines import read_clients, read_metrics, training_bytes

JsonLine = Mapping[str, Any]  # a line of a JSON-lines file of a run


def client_text(line: JsonLine) -> str:
  """A line of clients.jsonl as text: `round 3  clinic  ok  1.2 s  34.0 kB up  loss 0.512`."""
  parts = [f"round {line['round']}", line["client"], line["status"]]
  if "seconds" in line:
    parts.append(f"{line['seconds']:.1f} s")
  if line["bytes_up"]:
    parts.append(f"{line['bytes_up'] / 1e3:.1f} kB up")
  if line["loss"] is not None:
    parts.append(f"loss {line['loss']:.3f}")
  return "  ".join(parts)


def describe_run(run: Path) -> str:
  """A run's state, its last scores, and a table of its sites.

  Args:
    run: the run folder; a process may be writing to it.

  Raises:
    UserError: not a run folder, or a file in it is damaged.
  """
  try:
    config = parse_json((run / "config.json").read_bytes())["config"]
    rounds = config["fed"]["rounds"]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(f"{run}: expected a run folder with config.json; got: {error}") from error
  metrics, clients = read_metrics(run), read_clients(run)
  done = max((line["round"] for line in metrics), default=0)
  trained = [line for line in metrics if line["split"] == "train"]
  out = [f"{run_state(run, metrics)}: round {done} of {rounds}"]
  if trained:
    seconds = fmean(line["seconds"] for line in trained[1:] or trained)
    up, down = training_bytes(metrics)
    out[0] += f", {seconds:.1f} s per round after the first"
    out[0] += f", {up / 1e6:.2f} MB up and {down / 1e6:.2f} MB down in total"
  for split in ("train", "val", "test"):
    last = next((line for line in reversed(metrics) if line["split"] == split), None)
    if last is not None:
      named = [f"{name} {last[name]:.3f}" for name in _SCORES if last.get(name) is not None]
      out.append(f"{split}, round {last['round']}: {', '.join(named)}")
  if clients:
    out += ["", *_table(clients)]
  return "\n".join(out)


def run_state(run: Path, metrics: Sequence[JsonLine]) -> str:
  """Returns "running", "finished", or "stopped" (ended before its last round).

  Args:
    run: the run folder.
    metrics: the lines of its metrics.jsonl.
  """
  if is_locked(run):
    return "running"
  return "finished" if any(line["split"].startswith("test") for line in metrics) else "stopped"


_SCORES = ("loss", "cider", "bleu4", "rouge_l", *ANSWERS)
_HEAD = ("site", "ok", "missed", "seconds", "MB up", "loss", "last")


def _table(lines: Sequence[JsonLine]) -> list[str]:
  """A row for each site."""
  rows = [_HEAD]
  for name in sorted({line["client"] for line in lines}):
    mine = [line for line in lines if line["client"] == name]
    outcomes = [parse_status(line["status"]).outcome for line in mine]
    ok = [line for line, each in zip(mine, outcomes, strict=True) if each is Outcome.OK]
    seconds = [line["seconds"] for line in ok if "seconds" in line]
    rows.append(
      (
        name,
        str(len(ok)),
        str(len(mine) - len(ok) - outcomes.count(Outcome.LATE)),
        f"{fmean(seconds):.1f}" if seconds else "-",
        f"{sum(line['bytes_up'] for line in mine) / 1e6:.2f}",
        f"{ok[-1]['loss']:.3f}" if ok and ok[-1]["loss"] is not None else "-",
        f"round {mine[-1]['round']}: {mine[-1]['status']}",
      )
    )
  return align_columns(rows, left_last=True)


def is_locked(run: Path) -> bool:
  """Whether a process is using the folder."""
  try:
    with open(run / "lock") as lock:
      fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except BlockingIOError:
    return True
  except OSError:
    return False
  return False
