"""A study's plot: CIDEr of each variant against the bytes that its clients sent."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from afspl_jax.config.study import Study
from afspl_jax.runs.study.columns import CIDER, MEGABYTES
from afspl_jax.runs.study.results import CellResult, Estimate, StudyResults
from afspl_jax.storage.atomic_files import write_figure

if TYPE_CHECKING:
  from matplotlib.axes import Axes

_INK, _FULL, _REFERENCE, _LINE = "#3f3f46", "#b4232a", "#1f5fa8", "#b8b8c0"
_WIDTH, _DPI = 9.2, 100  # inches and dots per inch: 920 pixels
_LABEL, _LINE_HEIGHT = 8.0, 1.3 * 8.0 / 72  # points and inches
_MARGIN = 0.9  # inches above and below a panel's axes


def write_plot(study: Study, results: Sequence[CellResult], path: Path) -> bool:
  """Plots CIDEr of the global model against the bytes sent, one panel for each setting.

  Args:
    study: gives the order of settings and variants, and the two that are highlighted.
    results: from `read_results`.
    path: a PNG file; it is written atomically.

  Returns:
    False if there is no plot: without matplotlib (the extra "plots"), or without results.
  """
  try:
    from matplotlib.figure import Figure
  except ImportError:
    return False
  by_cell = StudyResults(results)
  points = {
    setting: {
      variant: (sent, cider)
      for variant in study.variants
      if (sent := by_cell.mean(setting, variant, MEGABYTES))
      and (cider := by_cell.mean(setting, variant, CIDER))
    }
    for setting in study.settings
  }
  points = {setting: found for setting, found in points.items() if found}
  if not points:
    return False
  across = min(2, len(points))
  down = -(-len(points) // across)
  height = max(2.6, _LINE_HEIGHT * max(map(len, points.values())))
  figure = Figure(figsize=(_WIDTH, down * (height + _MARGIN)), dpi=_DPI, layout="constrained")
  for number, (setting, found) in enumerate(points.items()):
    axes = figure.add_subplot(down, across, number + 1)
    axes.set_title(setting, fontsize=10, loc="left")
    _panel(axes, found, {study.reference: _REFERENCE, study.full: _FULL}, _LINE_HEIGHT / height)
  write_figure(path, figure)
  return True


def _panel(
  axes: "Axes",
  found: dict[str, tuple[Estimate, Estimate]],
  colours: dict[str, str],
  line_height: float,  # of the axes' height
) -> None:
  for variant, (sent, cider) in found.items():
    axes.errorbar(
      [sent.mean],
      [cider.mean],
      yerr=None if cider.seeds == 1 else [cider.half_width],
      xerr=None if sent.seeds == 1 else [sent.half_width],
      fmt="o",
      markersize=6 if variant in colours else 4,
      linewidth=0.8,
      color=colours.get(variant, _INK),
      zorder=3 if variant in colours else 2,
    )
  axes.set_xlabel("sent by all clients (MB)", fontsize=9)
  axes.set_ylabel("CIDEr, global model", fontsize=9)
  axes.tick_params(labelsize=8)
  axes.spines[["top", "right"]].set_visible(False)

  # Many variants send equally many bytes: names go into a column, in the order of the points.
  low, high = axes.get_ylim()
  order = sorted(found, key=lambda variant: found[variant][1].mean)
  wanted = [(found[variant][1].mean - low) / (high - low) for variant in order]
  for variant, position in zip(order, separate_labels(wanted, line_height), strict=True):
    sent, cider = found[variant]
    axes.annotate(
      variant,
      xy=(sent.mean, cider.mean),
      xytext=(1.08, position),
      textcoords="axes fraction",
      fontsize=_LABEL,
      color=colours.get(variant, _INK),
      va="center",
      weight="bold" if variant in colours else "normal",
      arrowprops={"arrowstyle": "-", "lw": 0.5, "color": _LINE, "relpos": (0, 0.5), "shrinkB": 3},
    )


def separate_labels(positions: Sequence[float], distance: float) -> list[float]:
  """Moves sorted label positions as little as possible, so that neighbours do not overlap.

  Args:
    positions: ascending, from 0 to 1.
    distance: the minimum distance of neighbours.

  Returns:
    The closest such positions in the sense of least squares: overlapping labels are spread evenly
    around their mean (pool adjacent violators; Barlow et al. 1972). They stay between 0 and 1 if
    all labels fit.
  """
  blocks: list[tuple[float, int]] = []  # mean of position minus offset, and the number of labels
  for number, position in enumerate(positions):
    mean, count = position - number * distance, 1
    while blocks and blocks[-1][0] > mean:
      before, size = blocks.pop()
      mean, count = (mean * count + before * size) / (count + size), count + size
    blocks.append((mean, count))
  most = 1 - (len(positions) - 1) * distance
  shifts = [max(0.0, min(mean, most)) for mean, count in blocks for _ in range(count)]
  return [shift + number * distance for number, shift in enumerate(shifts)]
