"""What a site gains by joining: scores of a federation minus those alone, by the size of sites."""

import operator
from collections.abc import Iterator, Sequence
from itertools import takewhile
from statistics import fmean
from typing import NamedTuple

from afspl_jax.config.study import Study
from afspl_jax.runs.study.columns import SITE_ANSWERS, SITE_CIDER, Column
from afspl_jax.runs.study.results import CellResult, Estimate, StudyResults

PICTURE = "gains.png"  # beside the tables; gain_plot.py draws it


class Gain(NamedTuple):
  """What one variant gains over training alone, in one setting."""

  examples: float  # training examples of a site, mean over sites and runs
  capped: bool  # by `data.max_examples`; otherwise these are all examples
  difference: Estimate  # paired by seed

  @property
  def size(self) -> str:
    """The size of sites as text."""
    return f"{self.examples:.0f}" if self.capped else f"all ({self.examples:.0f})"


class GainPanel(NamedTuple):
  """One score in the settings that differ only in the size of sites."""

  group: str  # what the settings have in common
  score: str  # "CIDEr", or a score of answers
  gains: dict[str, list[Gain]]  # by variant, in the order of sizes


def gain_panels(study: Study, results: Sequence[CellResult]) -> list[GainPanel]:
  """The panels that have numbers; none if the study has no variant in which sites train alone.

  The score of a site is that of its personalised model, or of the global model where a variant has
  no other.

  Args:
    study: gives `alone`, and the order of settings and variants.
    results: from `read_results`.
  """
  if not study.alone:
    return []
  answers = [c for c in SITE_ANSWERS if any(one.value(c) is not None for one in results)]
  panels = []
  for group, settings in _groups(study):
    for column in (SITE_CIDER, *answers[:1]):
      gains = _gains(study, settings, column, results)
      if gains:
        panels.append(GainPanel(group, column.name, gains))
  return panels


def gain_tables(study: Study, results: Sequence[CellResult]) -> list[str]:
  """The lines of the gains in Markdown; none without gains."""
  panels = gain_panels(study, results)
  if not panels:
    return []
  lines = [
    "",
    "## What a site gains by joining",
    "",
    f"Mean difference to *{study.alone}* with the same seed ± half the width of its 95 % interval,"
    " of the model that a site uses: the personalised one, or the global one where a method has no"
    " other. Sizes are training examples of a site.",
    "",
    f"![{gains_as_text(study, panels)}]({PICTURE})",
  ]
  for panel in panels:
    all_gains = sorted(gain for row in panel.gains.values() for gain in row)
    sizes = list(dict.fromkeys(gain.size for gain in all_gains))
    lines += ["", f"{panel.score}, {panel.group}:", "", f"| | {' | '.join(sizes)} |"]
    lines.append("| --- " + "| ---: " * len(sizes) + "|")
    for variant, row in panel.gains.items():
      texts = {gain.size: gain.difference.text(3, "+") for gain in row}
      lines.append(f"| {variant} | {' | '.join(texts.get(size, '–') for size in sizes)} |")
  return lines


def gains_as_text(study: Study, panels: Sequence[GainPanel]) -> str:
  """The alternative text of a picture of these panels."""
  sentences = [
    f"What a site gains over {study.alone}, by its number of training examples, with 95 % intervals"
    " of differences paired by seed."
  ]
  for panel in panels:
    parts = [
      f"{variant} " + ", ".join(f"{g.difference.text(2, '+')} at {g.size}" for g in row)
      for variant, row in panel.gains.items()
    ]
    sentences.append(f"{panel.score}, {panel.group}: {'; '.join(parts)}.")
  return " ".join(sentences)


def _groups(study: Study) -> Iterator[tuple[str, list[str]]]:
  """Settings that differ only in the size of sites, with what their names have in common."""
  groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
  for setting, overrides in study.settings.items():
    others = sorted((k, repr(v)) for k, v in overrides.items() if k != "data.max_examples")
    groups.setdefault(tuple(others), []).append(setting)
  for settings in groups.values():
    parts = zip(*(setting.split(", ") for setting in settings), strict=False)
    common = takewhile(lambda part: len(set(part)) == 1, parts)
    yield ", ".join(part[0] for part in common) or "; ".join(settings), settings


def _gains(
  study: Study, settings: Sequence[str], column: Column, results: Sequence[CellResult]
) -> dict[str, list[Gain]]:
  by_cell, out = StudyResults(results), dict[str, list[Gain]]()
  for variant in study.variants:
    row = []
    for setting in settings:
      runs = [one for one in results if one.cell.setting == setting and one.finished]
      sizes = [one.examples for one in runs if one.examples]
      found = by_cell.paired([setting], variant, study.alone, column, operator.sub)
      if variant != study.alone and found and sizes:
        capped = any(one.cell.config.data.max_examples for one in runs)
        row.append(Gain(fmean(sizes), capped, found))
    if row:
      out[variant] = sorted(row, key=lambda gain: gain.examples)
  return out
