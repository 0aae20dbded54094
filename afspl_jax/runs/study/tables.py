"""A study's tables in Markdown: means over seeds, and differences between variants."""

import math
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from afspl_jax.config.study import Study
from afspl_jax.runs.study.columns import CIDER, MAIN, MEGABYTES, MORE, PERSONALISED, Column
from afspl_jax.runs.study.gains import gain_tables
from afspl_jax.runs.study.results import CellResult, Estimate, StudyResults
from afspl_jax.storage.atomic_files import write_text

MISSING = "–"


class TableColumn(NamedTuple):
  """A column of a table as text."""

  name: str
  meaning: str
  text: Callable[[str, str], str]  # the cell of a setting and a variant


def write_tables(study: Study, results: Sequence[CellResult], command: str, file: Path) -> None:
  """Writes table.md atomically.

  Args:
    study: gives the order of settings and variants.
    results: from `read_results`.
    command: the command that made the numbers.
    file: the Markdown file.
  """
  write_text(file, format_tables(study, results, command))


def format_tables(study: Study, results: Sequence[CellResult], command: str) -> str:
  """The tables as Markdown; the arguments are those of `write_tables`."""
  by_cell = StudyResults(results)
  main, more = (
    [c for c in columns if c.always or any(one.value(c) is not None for one in results)]
    for columns in (MAIN, MORE)
  )
  tables = [
    [
      *(_mean_column(by_cell, c) for c in main),
      _share_column(study, by_cell),
      *(_difference_column(study, by_cell, c) for c in (CIDER, PERSONALISED)),
    ],
    [_mean_column(by_cell, c) for c in more],
  ]
  text = [
    f"Made by `{command}` from the measurements of its runs.",
    "",
    "A number is the mean over seeds ± half the width of its 95 % interval (Student's t); with one"
    f" seed there is no interval. {MISSING} means not measured.",
    "",
    *(f"- **{column.name}**: {column.meaning}" for table in tables for column in table),
  ]
  for setting in study.settings:
    number = len(study.seeds_of(setting))
    text += ["", f"## {setting} ({number} seed{'s' * (number > 1)})"]
    text += _setting_tables(study, setting, [table for table in tables if table], results)
    text += _missing_runs(setting, results)
  text += gain_tables(study, results)
  if len(study.settings) > 1:
    text += ["", "## All settings together", "", *_all_settings(study, by_cell)]
  return "\n".join(text) + "\n"


def _setting_tables(
  study: Study,
  setting: str,
  tables: Sequence[Sequence[TableColumn]],
  results: Sequence[CellResult],
) -> list[str]:
  """The tables of one setting, with a row for each variant."""
  most, lines = len(study.seeds_of(setting)), list[str]()
  for table in tables:
    lines += ["", _row(["", *(c.name for c in table)]), _row(["---"] + ["---:"] * len(table))]
    for variant in study.variants:
      runs = (one for one in results if (one.cell.setting, one.cell.variant) == (setting, variant))
      finished = sum(one.finished for one in runs)
      number = len(study.seeds_of(setting, variant))
      some = f"{finished} of {number} seeds" if 0 < finished < number else ""
      fewer = f"{number} seeds" if number < most else ""
      name = variant + (f" ({some or fewer})" if some or fewer else "")
      lines.append(_row([name, *(column.text(setting, variant) for column in table)]))
  return lines


def _missing_runs(setting: str, results: Sequence[CellResult]) -> list[str]:
  """The runs of a setting that did not finish, with the reasons."""
  seeds: dict[tuple[str, str], list[str]] = {}
  for one in results:
    if one.cell.setting == setting and not one.finished:
      reason = one.failure or "not finished"
      seeds.setdefault((one.cell.variant, reason), []).append(str(one.cell.seed))
  lines = [
    f"- {name}, seed {', '.join(numbers)}: {reason}" for (name, reason), numbers in seeds.items()
  ]
  return ["", "Missing:", "", *lines] if lines else []


def _all_settings(study: Study, by_cell: StudyResults) -> list[str]:
  """Differences from the full method over all settings and seeds."""
  columns = (CIDER, PERSONALISED)
  head = ["", *(f"{column.name} − {study.full}" for column in columns), "pairs"]
  lines = [_row(head), _row(["---"] + ["---:"] * (len(head) - 1))]
  for variant in study.variants:
    if variant != study.full:
      both = [
        by_cell.paired(study.settings, variant, study.full, column, operator.sub)
        for column in columns
      ]
      number = max((value.seeds for value in both if value), default=0)
      lines.append(_row([variant, *(_text(value, 3, "+") for value in both), str(number)]))
  return [
    "Mean difference of runs with the same setting and seed ± half the width of its 95 % interval,"
    " which treats the pairs as independent.",
    "",
    *lines,
  ]


def _mean_column(by_cell: StudyResults, column: Column) -> TableColumn:
  def text(setting: str, variant: str) -> str:
    return _text(by_cell.mean(setting, variant, column), column.decimals)

  return TableColumn(column.name, column.meaning, text)


def _share_column(study: Study, by_cell: StudyResults) -> TableColumn:
  def percentage(part: float, whole: float) -> float:
    return 100 * part / whole if whole else math.nan

  def text(setting: str, variant: str) -> str:
    return _text(by_cell.paired([setting], variant, study.reference, MEGABYTES, percentage), 1)

  name = f"% of {study.reference}"
  return TableColumn(name, f"MB up in percent of *{study.reference}* with the same seed", text)


def _difference_column(study: Study, by_cell: StudyResults, column: Column) -> TableColumn:
  def text(setting: str, variant: str) -> str:
    if variant == study.full:
      return ""
    return _text(by_cell.paired([setting], variant, study.full, column, operator.sub), 3, "+")

  quantity = "personalised CIDEr" if column is PERSONALISED else column.name
  meaning = f"difference in {quantity} to *{study.full}* with the same seed"
  return TableColumn(f"{column.name} − {study.full}", meaning, text)


def _text(value: Estimate | None, decimals: int, sign: str = "") -> str:
  return MISSING if value is None or math.isnan(value.mean) else value.text(decimals, sign)


def _row(parts: Sequence[str]) -> str:
  return f"| {' | '.join(part.replace('|', '/') for part in parts)} |"
