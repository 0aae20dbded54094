"""A plot of a partition: how many examples every client has, and with which labels."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from afspl_jax.storage.atomic_files import write_figure

if TYPE_CHECKING:
  from matplotlib.axes import Axes

_WIDTH, _DPI = 9.2, 100  # inches and dots per inch: 920 pixels
_LINE, _HEIGHT = (
  0.2,
  6.0,
)  # inches of a named client's row, and of all rows where they have no names
_NAMED = 40  # most clients with names
_COLOURS, _COLUMNS = 12, 40  # labels that parts of a bar show, and columns
_MOST = 8.0  # times as frequent as at all clients: the end of the colour scale, and its inverse
_INK, _GREY = "#3f3f46", "#b8b8c0"
_OTHER = "other"

Counts = Float[np.ndarray, "clients labels"]


def plot_partition(manifest: Mapping[str, Any], path: Path) -> bool:
  """Plots the train part of a manifest.

  Each client has a bar in the colours of its labels. With more than 40 clients or 12 labels, each
  has a row of a heat map instead, which shows how much more frequent each label is than at all
  clients together. More than 40 clients are sorted by size and have no names.

  Args:
    manifest: from `make_manifest`.
    path: a PNG, written completely or not at all.

  Returns:
    Whether it was plotted; it is not without matplotlib (the extra "plots").
  """
  try:
    from matplotlib.figure import Figure
  except ImportError:
    return False
  sizes = {name: len(parts["train"]) for name, parts in manifest["clients"].items()}
  named = len(sizes) <= _NAMED
  names = list(sizes) if named else sorted(sizes, key=lambda name: -sizes[name])
  size = np.array([sizes[name] for name in names])
  labels, counts = _table(manifest["labels"], names)
  bars = named and len(labels) <= _COLOURS
  height = max(_LINE * len(names), 0.17 * len(labels) if bars else 1.2) if named else _HEIGHT
  figure = Figure(figsize=(_WIDTH, height + 1.1), dpi=_DPI, layout="constrained")
  figure.suptitle(
    f"{manifest['partition']}: {size.sum():,} examples of train at {len(names):,} clients",
    fontsize=10,
    x=0.01,
    ha="left",
  )
  if bars or not labels:
    left = figure.add_subplot()
  else:
    left, right = figure.subplots(1, 2, width_ratios=(1, 3))
    _heat_map(right, labels, counts)
  if bars:
    _bars(left, size, labels, counts)
  elif named:
    left.barh(np.arange(len(size)), size, height=0.8, color=_GREY)
  else:
    left.stairs(size, np.arange(len(size) + 1) - 0.5, orientation="horizontal", fill=True, fc=_GREY)
    ends = f"the largest ({size[0]:,}) to the smallest ({size[-1]:,})"
    left.set_ylabel(f"clients, {ends}", fontsize=9)
  if named:
    _name_rows(left, names, size)
  left.set_ylim(len(names) - 0.5, -0.5)
  left.set_xlim(0, (1.08 if bars else 1.4 if named else 1.0) * max(size.max(), 1))
  left.set_xlabel("examples of train", fontsize=9)
  left.tick_params(labelsize=8)
  left.spines[["top", "right"]].set_visible(False)
  write_figure(path, figure)
  return True


def _table(found: Mapping[str, Mapping[str, int]], names: list[str]) -> tuple[list[str], Counts]:
  """Examples of each label at each client; if there are too many labels, the rarest are joined."""
  total: Counter[str] = Counter()
  for name in names:
    total.update(found[name])
  labels = sorted(total)
  if len(total) > _COLUMNS:
    labels = sorted(sorted(total, key=lambda label: -total[label])[: _COLUMNS - 1])
  counts = np.array([[found[name].get(label, 0) for label in labels] for name in names], float)
  if len(labels) < len(total):
    rest = np.array([sum(found[name].values()) for name in names]) - counts.sum(axis=1)
    labels, counts = [*labels, _OTHER], np.column_stack([counts, rest])
  return labels, counts


def _name_rows(axes: "Axes", names: list[str], size: Int[np.ndarray, " clients"]) -> None:
  axes.set_yticks(np.arange(len(names)), names)
  for row, count in enumerate(size):
    axes.annotate(
      f"{count:,}",
      (count, row),
      color=_INK,
      xytext=(4, 0),
      textcoords="offset points",
      va="center",
      fontsize=8,
    )


def _bars(
  axes: "Axes", size: Int[np.ndarray, " clients"], labels: list[str], counts: Counts
) -> None:
  from matplotlib import colormaps

  rows, start = np.arange(len(size)), np.zeros(len(size))
  colours = colormaps["Paired"]
  if not labels:
    axes.barh(rows, size, height=0.8, color=_GREY)
    return
  # An example counts for each of its labels, but a bar is as long as the number of examples.
  shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
  for number, label in enumerate(labels):
    width = size * shares[:, number]
    axes.barh(rows, width, left=start, height=0.8, color=colours(number), label=label)
    start += width
  axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8, frameon=False, borderaxespad=0)


def _heat_map(axes: "Axes", labels: list[str], counts: Counts) -> None:
  from matplotlib.colors import LogNorm

  own = counts.sum(axis=1, keepdims=True)
  overall = counts.sum(axis=0) / max(counts.sum(), 1)
  lift = np.divide(counts, own * overall, out=np.full(counts.shape, np.nan), where=own > 0)
  lift = np.clip(lift, 1 / _MOST, _MOST)
  image = axes.imshow(
    lift, aspect="auto", cmap="RdBu_r", norm=LogNorm(1 / _MOST, _MOST), interpolation="none"
  )
  many = len(labels) > _COLOURS
  axes.set_xticks(np.arange(len(labels)), labels, rotation=90 if many else 0)
  axes.tick_params(labelsize=7 if many else 8)
  axes.tick_params(axis="y", left=False, labelleft=False)
  bar = axes.figure.colorbar(image, ax=axes, pad=0.01)
  bar.set_ticks(
    [1 / _MOST, 0.5, 1, 2, _MOST], labels=[f"1/{_MOST:.0f}", "1/2", "1", "2", f"{_MOST:.0f}"]
  )
  bar.minorticks_off()
  bar.ax.tick_params(labelsize=8)
  bar.set_label("times as frequent as at all clients", fontsize=9)
