"""Reads what the runs of a study measured, and computes means over seeds with 95 % intervals."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from scipy.special import stdtrit

from afspl_jax.config.study import Cell, Study, cells
from afspl_jax.runs.study.columns import Column
from afspl_jax.storage.atomic_files import write_text
from afspl_jax.storage.run_lines import CLIENTS, METRICS, read_lines

FINISHED = "finished"  # a marker file in the folder of a run that finished
RunMetrics = Mapping[str, Mapping[str, Any]]  # a run's last lines of metrics.jsonl, by split


class Estimate(NamedTuple):
  """A mean over seeds."""

  mean: float
  half_width: float  # of the 95 % interval; nan with one seed
  seeds: int

  def text(self, decimals: int, sign: str = "") -> str:
    """Text such as `0.123 ± 0.004`; one seed has no interval."""
    mean = f"{self.mean:{sign}.{decimals}f}"
    return mean if self.seeds == 1 else f"{mean} ± {self.half_width:.{decimals}f}"


@dataclass(frozen=True)
class CellResult:
  """A cell of a study with the measurements of its run."""

  cell: Cell
  metrics: RunMetrics
  finished: bool
  failure: str = ""  # why the last attempt failed, if it did
  examples: float | None = None  # training examples of a client, mean over clients

  def value(self, column: Column) -> float | None:
    """The run's number in the column's unit; None if it was not measured or not finished."""
    if not self.finished:
      return None
    value = self.metrics.get(column.split, {}).get(column.key)
    if value is None:
      return self.value(column.otherwise) if column.otherwise else None
    return value * column.scale

  def to_json(self) -> dict[str, Any]:
    """All numbers of the cell, as results.json holds them."""
    return {
      "setting": self.cell.setting,
      "variant": self.cell.variant,
      "seed": self.cell.seed,
      "run": f"runs/{self.cell.run}",
      "finished": self.finished,
      "failure": self.failure,
      "examples": self.examples,
      "metrics": self.metrics,
    }


def is_finished(workdir: Path, run: str) -> bool:
  """Whether a run finished; a run that did not may still have some of its scores."""
  return (workdir / "runs" / run / FINISHED).exists()


def read_results(study: Study, workdir: Path) -> list[CellResult]:
  """Every cell of a study with what its run has measured so far.

  Raises:
    UserError: a line of a run's metrics is not JSON.
  """
  failures = {line["run"]: line["reason"] for line in read_lines(workdir / "failures.jsonl")}
  out = []
  for cell in cells(study):
    done = is_finished(workdir, cell.run)
    failure = "" if done else failures.get(cell.run, "")
    folder = workdir / "runs" / cell.run
    out.append(CellResult(cell, _final_metrics(folder), done, failure, _mean_examples(folder)))
  return out


def estimate(values: Sequence[float]) -> Estimate | None:
  """Mean and Student's t interval of the values of some seeds; None without values."""
  number = len(values)
  if number < 2:
    return Estimate(values[0], math.nan, 1) if values else None
  t = float(stdtrit(number - 1, 0.975))
  return Estimate(fmean(values), t * stdev(values) / math.sqrt(number), number)


class StudyResults:
  """Results of a study by setting and variant; seeds stay separate so that they can be paired."""

  def __init__(self, results: Sequence[CellResult]):
    self._results: dict[tuple[str, str], list[CellResult]] = {}
    for one in results:
      self._results.setdefault((one.cell.setting, one.cell.variant), []).append(one)

  def by_seed(self, setting: str, variant: str, column: Column) -> dict[int, float]:
    """The column's number for every seed that has one."""
    values = {one.cell.seed: one.value(column) for one in self._results[setting, variant]}
    return {seed: value for seed, value in values.items() if value is not None}

  def mean(self, setting: str, variant: str, column: Column) -> Estimate | None:
    """The mean over the seeds that have a number."""
    return estimate(list(self.by_seed(setting, variant, column).values()))

  def paired(
    self,
    settings: Iterable[str],
    variant: str,
    other: str,
    column: Column,
    compare: Callable[[float, float], float],
  ) -> Estimate | None:
    """Compares two variants by setting and seed, wherever both have a number."""
    pairs = []
    for setting in settings:
      first, second = (self.by_seed(setting, name, column) for name in (variant, other))
      pairs += [compare(first[seed], second[seed]) for seed in first if seed in second]
    return estimate(pairs)


def write_results(results: Sequence[CellResult], file: Path) -> None:
  """Writes results.json: every number of every cell."""
  text = json.dumps([one.to_json() for one in results], indent=2, ensure_ascii=False)
  write_text(file, text + "\n")


def _final_metrics(folder: Path) -> RunMetrics:
  """The last line of each split after the last round; {} if there is none yet."""
  lines = read_lines(folder / METRICS)
  return {line["split"]: line for line in lines if line["split"] not in ("train", "val")}


def _mean_examples(folder: Path) -> float | None:
  """The training examples of a client, mean over those that took part; None if none did."""
  lines = read_lines(folder / CLIENTS)
  examples = {line["client"]: line["num_examples"] for line in lines if line["num_examples"]}
  return fmean(examples.values()) if examples else None
