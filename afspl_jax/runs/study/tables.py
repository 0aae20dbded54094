"""A study's tables: means over seeds with their 95 % intervals, from the runs' files alone."""

import json
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from scipy.special import stdtrit

from afspl_jax.config.study import Cell, Study, cells
from afspl_jax.runs.study.columns import CIDER, MAIN, MEGABYTES, MORE, OWN, Column
from afspl_jax.storage.atomic_files import write_text
from afspl_jax.storage.run_lines import METRICS, read_lines

MISSING = "–"
FINISHED = "finished"  # a file in a run's folder
Metrics = Mapping[str, Mapping[str, Any]]  # a run's last lines, by split


class Estimate(NamedTuple):
  """A mean over seeds."""

  mean: float
  half_width: float  # of the 95 % interval; nan for one seed
  seeds: int

  def text(self, decimals: int, sign: str = "") -> str:
    """As `0.123 ± 0.004`; one seed has no interval."""
    mean = f"{self.mean:{sign}.{decimals}f}"
    return mean if self.seeds == 1 else f"{mean} ± {self.half_width:.{decimals}f}"


@dataclass(frozen=True)
class Scored:
  """A cell with what its run measured."""

  cell: Cell
  metrics: Metrics
  finished: bool  # nothing is left to run
  failure: str = ""  # else: why the last attempt failed, if it did

  def value(self, column: Column) -> float | None:
    """The run's number, in the column's unit; None where it was not measured, or not to its end."""
    if not self.finished:
      return None
    value = self.metrics.get(column.split, {}).get(column.key)
    return None if value is None else value * column.scale


def metrics_of(workdir: Path, run: str) -> Metrics:
  """What a run measured after its last round: the last line of each split, or nothing yet."""
  lines = read_lines(workdir / "runs" / run / METRICS)
  return {line["split"]: line for line in lines if line["split"] not in ("train", "val")}


def is_finished(workdir: Path, run: str) -> bool:
  """Whether a run ended well; it may have its scores, and yet not all of them."""
  return (workdir / "runs" / run / FINISHED).exists()


def read(study: Study, workdir: Path) -> list[Scored]:
  """Every cell of a study with what there is of its run."""
  everything = cells(study)
  failures = {line["run"]: line["reason"] for line in read_lines(workdir / "failures.jsonl")}
  out = []
  for cell in everything:
    done = is_finished(workdir, cell.run)
    failure = "" if done else failures.get(cell.run, "")
    out.append(Scored(cell, metrics_of(workdir, cell.run), done, failure))
  return out


def estimate(values: Sequence[float]) -> Estimate | None:
  """Mean and Student's t interval of some seeds' values; None of none."""
  number = len(values)
  if number < 2:
    return Estimate(values[0], math.nan, 1) if values else None
  t = float(stdtrit(number - 1, 0.975))
  return Estimate(fmean(values), t * stdev(values) / math.sqrt(number), number)


class Rows:
  """Numbers of a study by setting and variant; seeds are kept apart until they are paired."""

  def __init__(self, scored: Sequence[Scored]):
    self._scored: dict[tuple[str, str], list[Scored]] = {}
    for one in scored:
      self._scored.setdefault((one.cell.setting, one.cell.variant), []).append(one)

  def by_seed(self, setting: str, variant: str, column: Column) -> dict[int, float]:
    """The column's number of every seed that has it."""
    values = {one.cell.seed: one.value(column) for one in self._scored[setting, variant]}
    return {seed: value for seed, value in values.items() if value is not None}

  def mean(self, setting: str, variant: str, column: Column) -> Estimate | None:
    """Over the seeds that have it."""
    return estimate(list(self.by_seed(setting, variant, column).values()))

  def paired(
    self,
    settings: Iterable[str],
    variant: str,
    other: str,
    column: Column,
    compare: Callable[[float, float], float],
  ) -> Estimate | None:
    """Compares two variants setting by setting and seed by seed, wherever there are both."""
    pairs = []
    for setting in settings:
      ours, theirs = (self.by_seed(setting, name, column) for name in (variant, other))
      pairs += [compare(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    return estimate(pairs)


class Shown(NamedTuple):
  """A column of a table as text."""

  name: str
  meaning: str
  text: Callable[[str, str], str]  # of setting and variant


def markdown(study: Study, scored: Sequence[Scored], command: str) -> str:
  """The tables as text.

  Args:
    study: gives the order of settings and variants.
    scored: from `read`.
    command: what made the numbers, for the reader to repeat it.
  """
  rows = Rows(scored)
  more = [c for c in MORE if any(one.value(c) is not None for one in scored)]
  tables = [
    [
      *(_shown(rows, c) for c in MAIN),
      _share(study, rows),
      *(_gain(study, rows, c) for c in (CIDER, OWN)),
    ],
    [_shown(rows, c) for c in more],
  ]
  number = len(study.seeds)
  text = [
    f"Made by `{command}`, from what its runs measured.",
    "",
    f"A number is the mean over seeds ± half the width of its 95 % interval (Student's t), which"
    f" one seed does not have. {MISSING} was not measured.",
    "",
    *(f"- **{column.name}**: {column.meaning}" for table in tables for column in table),
  ]
  for setting in study.settings:
    text += ["", f"## {setting} ({number} seed{'s' * (number > 1)})"]
    for table in filter(None, tables):
      text += ["", _row(["", *(c.name for c in table)]), _row(["---"] + ["---:"] * len(table))]
      for variant in study.variants:
        of = (one for one in scored if (one.cell.setting, one.cell.variant) == (setting, variant))
        have = sum(one.finished for one in of)
        name = variant + (f" ({have} of {number} seeds)" if 0 < have < number else "")
        text.append(_row([name, *(column.text(setting, variant) for column in table)]))
    lacking: dict[tuple[str, str], list[str]] = {}
    for one in scored:
      if one.cell.setting == setting and not one.finished:
        why = one.failure or "not run to its end"
        lacking.setdefault((one.cell.variant, why), []).append(str(one.cell.seed))
    if lacking:
      text += ["", "Missing:", ""]
      text += [f"- {name}, seed {', '.join(of)}: {why}" for (name, why), of in lacking.items()]
  if len(study.settings) > 1:
    text += ["", "## All settings together", "", *_together(study, rows)]
  return "\n".join(text) + "\n"


def _together(study: Study, rows: Rows) -> list[str]:
  """Differences to the full method over all settings and seeds: more pairs than one setting has."""
  head = ["", *(f"{column.name} − {study.full}" for column in (CIDER, OWN)), "pairs"]
  lines = [_row(head), _row(["---"] + ["---:"] * (len(head) - 1))]
  for variant in study.variants:
    if variant != study.full:
      both = [
        rows.paired(study.settings, variant, study.full, column, operator.sub)
        for column in (CIDER, OWN)
      ]
      number = max((value.seeds for value in both if value), default=0)
      lines.append(_row([variant, *(_text(value, 3, "+") for value in both), str(number)]))
  return [
    "Mean difference of runs with the same setting and seed ± half the width of its 95 % interval,"
    " which takes the pairs as independent.",
    "",
    *lines,
  ]


def _shown(rows: Rows, column: Column) -> Shown:
  def text(setting: str, variant: str) -> str:
    return _text(rows.mean(setting, variant, column), column.decimals)

  return Shown(column.name, column.meaning, text)


def _share(study: Study, rows: Rows) -> Shown:
  def percentage(part: float, whole: float) -> float:
    return 100 * part / whole if whole else math.nan

  def text(setting: str, variant: str) -> str:
    return _text(rows.paired([setting], variant, study.reference, MEGABYTES, percentage), 1)

  name = f"% of {study.reference}"
  return Shown(name, f"MB up, of those of *{study.reference}* with the same seed", text)


def _gain(study: Study, rows: Rows, column: Column) -> Shown:
  def text(setting: str, variant: str) -> str:
    if variant == study.full:
      return ""
    return _text(rows.paired([setting], variant, study.full, column, operator.sub), 3, "+")

  meaning = f"difference in {column.name} to *{study.full}* with the same seed"
  return Shown(f"{column.name} − {study.full}", meaning, text)


def results(scored: Sequence[Scored]) -> list[dict[str, Any]]:
  """Every number of every cell, as results.json holds it."""
  return [
    {
      "setting": one.cell.setting,
      "variant": one.cell.variant,
      "seed": one.cell.seed,
      "run": f"runs/{one.cell.run}",
      "finished": one.finished,
      "failure": one.failure,
      "metrics": one.metrics,
    }
    for one in scored
  ]


def write(study: Study, workdir: Path, command: str) -> list[Scored]:
  """Writes table.md and results.json, each whole or not at all, from what there is.

  Returns:
    What they hold, for a picture.

  Raises:
    UserError: a line of a run that is not JSON.
  """
  scored = read(study, workdir)
  write_text(workdir / "table.md", markdown(study, scored, command))
  numbers = json.dumps(results(scored), indent=2, ensure_ascii=False)
  write_text(workdir / "results.json", numbers + "\n")
  return scored


def _text(value: Estimate | None, decimals: int, sign: str = "") -> str:
  return MISSING if value is None or math.isnan(value.mean) else value.text(decimals, sign)


def _row(parts: Sequence[str]) -> str:
  return f"| {' | '.join(part.replace('|', '/') for part in parts)} |"
