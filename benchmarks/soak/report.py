"""What a soak found: figures, and a verdict on every check."""

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from afspl_jax.reporting.text_table import align_columns
from afspl_jax.storage.client_status import parse_status
from afspl_jax.storage.run_lines import RunLine
from benchmarks.soak.checks import Verdict, last_usage
from benchmarks.soak.schedule import role_of
from benchmarks.soak.soak import Events, Sample

_TENTH = (
  0.1  # of a soak: what processes hold then is compared with what they hold in its last tenth
)
_FIRST_ROUNDS = 10  # belong to it in any case: imports, compiled programs and buffers come with use


@dataclass
class Report:
  """Everything that a soak found."""

  seed: int
  folder: str
  seconds: float
  rounds: int
  round_seconds: dict[str, float]  # median and longest
  disturbances: dict[str, int]  # by what was done to which role
  exits: list[dict[str, Any]]  # of processes that the soak did not kill
  replies: dict[str, int]  # by outcome
  reasons: dict[str, int]  # of replies that did not count
  held: dict[str, dict[str, list[float]]]  # by process: memory (MB), threads, files; early and last
  disk: dict[str, list[float]]  # MB, by folder; early and last
  verdicts: list[dict[str, Any]]
  passed: bool


def early_samples(samples: Sequence[Sample]) -> list[Sample]:
  """Those of the first tenth of a soak, and of the rounds in which every process first works."""
  end = _TENTH * samples[-1].seconds
  early = [sample for sample in samples if sample.seconds <= end or sample.round <= _FIRST_ROUNDS]
  return early or list(samples[:1])


def late_samples(samples: Sequence[Sample]) -> list[Sample]:
  """Those of the last tenth of a soak."""
  begin = (1 - _TENTH) * samples[-1].seconds
  return [sample for sample in samples if sample.seconds >= begin]


def make_report(
  seed: int,
  folder: Path,
  events: Events,
  samples: Sequence[Sample],
  lines: Sequence[RunLine],
  verdicts: Sequence[Verdict],
) -> Report:
  """Summarises a soak.

  Args:
    seed: of its disturbances.
    folder: of the soak.
    events: what happened.
    samples: what processes held, by time.
    lines: of the run's clients.jsonl.
    verdicts: of the checks.
  """
  finished = [event["seconds"] for event in events.of("round")]
  gaps = [after - before for before, after in pairwise(finished)]
  done = [event for event in events.all if event["what"] in ("kill", "stop", "missed")]
  statuses = [parse_status(line["status"]) for line in lines]
  return Report(
    seed=seed,
    folder=str(folder),
    seconds=samples[-1].seconds,
    rounds=samples[-1].round,
    round_seconds={"median": statistics.median(gaps or [0]), "longest": max(gaps, default=0)},
    disturbances=dict(Counter(f"{each['what']} {role_of(each['process'])}" for each in done)),
    exits=[event for event in events.of("exit") if event["status"] not in (0, -9)],
    replies=dict(Counter(str(status.outcome) for status in statuses)),
    reasons=dict(Counter(str(status)[:100] for status in statuses if status.reason).most_common()),
    held=_held(samples),
    disk=_disk(samples),
    verdicts=[verdict._asdict() | {"passed": verdict.passed} for verdict in verdicts],
    passed=all(verdict.passed for verdict in verdicts),
  )


def in_one_line(events: Events) -> str:
  """The state of a soak for its progress bar."""
  rounds = len(events.of("round"))
  kills, stops = len(events.of("kill")), len(events.of("stop"))
  return f"{rounds} rounds, {kills} kills, {stops} stops"


def as_text(report: Report, verdicts: Sequence[Verdict]) -> str:
  """The report for the terminal."""
  median, longest = report.round_seconds["median"], report.round_seconds["longest"]
  rows = [["process", "MB at 10 %", "MB at the end", "threads", "", "files", ""]]
  for name, held in report.held.items():
    cells = [f"{value:.0f}" for key in ("memory", "threads", "files") for value in held[key]]
    rows.append([name, *cells])
  disk = [["folder", "MB at 10 %", "MB at the end"]]
  disk += [[name, *(f"{value:.2f}" for value in pair)] for name, pair in report.disk.items()]
  exits = Counter(
    f"{each['name']} ended with {each['status']}: {each['said']}" for each in report.exits
  )
  return "\n".join(
    [
      f"seed {report.seed}: {report.rounds} rounds in {report.seconds:.0f} s;"
      f" a round took {median:.1f} s (median), {longest:.1f} s (longest)",
      f"disturbances: {_counts(report.disturbances)}",
      f"replies: {_counts(report.replies)}",
      *(f"  {count} x {reason}" for reason, count in report.reasons.items()),
      *(f"  {count} x {what}" for what, count in exits.items()),
      "",
      *align_columns(rows),
      "",
      *align_columns(disk),
      "",
      *map(str, verdicts),
    ]
  )


def write(file: Path, report: Report) -> None:
  """Writes the report as JSON."""
  file.write_text(json.dumps(asdict(report), indent=1) + "\n")


def _held(samples: Sequence[Sample]) -> dict[str, dict[str, list[float]]]:
  early, last = last_usage(early_samples(samples)), last_usage(samples)
  return {
    name: {
      "memory": [each.memory / 1e6 for each in (early[name], last[name])],
      "threads": [early[name].threads, last[name].threads],
      "files": [early[name].files, last[name].files],
    }
    for name in sorted(early.keys() & last.keys())
  }


def _disk(samples: Sequence[Sample]) -> dict[str, list[float]]:
  early, last = early_samples(samples)[-1].disk, samples[-1].disk
  return {
    name: [early.get(name, 0) / 1e6, last.get(name, 0) / 1e6]
    for name in sorted(early.keys() | last.keys())
  }


def _counts(counts: dict[str, int]) -> str:
  return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"
