"""A study's picture of what a site gains by joining, by the size of sites."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from afspl_jax.config.study import Study
from afspl_jax.runs.study.gains import GainPanel, gain_panels, gains_as_text
from afspl_jax.runs.study.results import CellResult
from afspl_jax.storage.atomic_files import write_figure

if TYPE_CHECKING:
  from matplotlib.axes import Axes

_FULL, _REFERENCE, _LINE = "#b4232a", "#1f5fa8", "#8a8a94"
_OTHERS = ("#3f3f46", "#8a5a00", "#2f7d4f", "#6d4aa3")  # distinct in grey too, by their markers
_MARKERS = "osD^vP"
_WIDTH, _HEIGHT, _DPI = 9.2, 3.1, 100  # inches, of a row of panels; dots per inch
_STEP = 1.045  # factor between the places of variants, so that their intervals do not overlap


def write_gain_plot(study: Study, results: Sequence[CellResult], path: Path) -> bool:
  """Plots the gains, with a row of panels for each group of settings and a column for each score.

  Args:
    study: gives the variant in which sites train alone, and the two that are highlighted.
    results: from `read_results`.
    path: a PNG file, written atomically; its alternative text is its metadata `Description`.

  Returns:
    False if there is no plot: without matplotlib (the extra "plots"), or without gains.
  """
  try:
    from matplotlib.figure import Figure
  except ImportError:
    return False
  panels = gain_panels(study, results)
  if not panels:
    return False
  groups = list(dict.fromkeys(panel.group for panel in panels))
  scores = list(dict.fromkeys(panel.score for panel in panels))
  height = _HEIGHT * len(groups) + 0.4  # the legend
  figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")
  grid = figure.subplots(len(groups), len(scores), squeeze=False)
  styles = _styles(study)
  for axes in grid.flat:
    axes.set_visible(False)
  for panel in panels:
    axes = grid[groups.index(panel.group), scores.index(panel.score)]
    axes.set_visible(True)
    _draw(axes, panel, study, styles)
  handles = {
    label: handle
    for axes in grid.flat
    for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
  }
  figure.legend(
    handles.values(),
    handles.keys(),
    loc="outside upper left",
    ncols=len(handles),
    fontsize=9,
    frameon=False,
  )
  write_figure(path, figure, gains_as_text(study, panels))
  return True


def _styles(study: Study) -> dict[str, tuple[str, str]]:
  """The colour and the marker of each variant."""
  variants = [variant for variant in study.variants if variant != study.alone]
  highlighted = {study.reference: _REFERENCE, study.full: _FULL}
  others = [variant for variant in variants if variant not in highlighted]
  colours = {variant: _OTHERS[i % len(_OTHERS)] for i, variant in enumerate(others)} | highlighted
  return {
    variant: (colours[variant], _MARKERS[i % len(_MARKERS)]) for i, variant in enumerate(variants)
  }


def _draw(axes: "Axes", panel: GainPanel, study: Study, styles: dict[str, tuple[str, str]]) -> None:
  order = list(styles)
  for variant, row in panel.gains.items():
    colour, marker = styles[variant]
    shift = _STEP ** (order.index(variant) - (len(order) - 1) / 2)
    half = [0.0 if gain.difference.seeds == 1 else gain.difference.half_width for gain in row]
    axes.errorbar(
      [gain.examples * shift for gain in row],
      [gain.difference.mean for gain in row],
      yerr=half,
      fmt=f"{marker}-",
      color=colour,
      markersize=6 if variant == study.full else 5,
      linewidth=1.6 if variant == study.full else 1.0,
      elinewidth=0.8,
      label=variant,
    )
  axes.axhline(0, color=_LINE, linewidth=1, linestyle="--")
  sizes = {gain.examples: gain.size for row in panel.gains.values() for gain in row}
  axes.set_xscale("log")
  axes.set_xticks(list(sizes), list(sizes.values()))
  axes.minorticks_off()
  axes.margins(x=0.12)
  axes.set_title(f"{panel.group}: {panel.score}", fontsize=10, loc="left")
  axes.set_xlabel("training examples of a site", fontsize=9)
  axes.set_ylabel(f"{panel.score}, gain over {study.alone}", fontsize=9)
  axes.tick_params(labelsize=8)
  axes.spines[["top", "right"]].set_visible(False)
