"""Curves of loss and scores over rounds, bytes and seconds."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from afspl_jax.reporting.html import charts
from afspl_jax.reporting.html.charts import AxisTitles, Chart
from afspl_jax.reporting.html.files import RunFiles
from afspl_jax.reporting.html.tables import Number, Table, format_number

T = TypeVar("T")

MOST = 240  # points of a line; more cannot be distinguished
TITLES = {
  "loss": "Loss",
  "cider": "CIDEr",
  "bleu4": "BLEU-4",
  "rouge_l": "ROUGE-L",
  "exact_match": "Exact match",
  "vqa_accuracy": "VQA accuracy",
}
_MEANING = {
  "loss": "Cross-entropy in nats per token; lower is better.",
  "cider": "Similarity of captions to human captions, from 0 to 10; higher is better.",
  "bleu4": "Overlap of 4-grams with the references, from 0 to 1; higher is better.",
  "rouge_l": "Longest common subsequence with a reference, from 0 to 1; higher is better.",
  "exact_match": (
    "Fraction of the questions with one answer that are answered with exactly it, after"
    " normalisation, from 0 to 1; higher is better."
  ),
  "vqa_accuracy": (
    "VQAv2's accuracy over the questions with several answers, from 0 to 1; higher is better."
  ),
}
_EPSILON = (
  "Privacy loss of one client over all rounds so far: ε of differential privacy at the run's δ;"
  " lower is better."
)
# What the x-axis shows: field of a point, axis title, ending of the chart's title, caption.
_X_AXES = (
  ("round", "round", "by round", ""),
  (
    "megabytes",
    "sent by all clients (MB)",
    "by bytes sent",
    "The same values over the bytes that clients had sent.",
  ),
  (
    "seconds",
    "training (seconds)",
    "by time",
    "The same values over the seconds of training.",
  ),
)


class CurvePoint(NamedTuple):
  """A measurement, with the rounds, bytes and seconds that the run had used by then."""

  round: int
  megabytes: Number  # sent by all clients
  seconds: Number  # in training rounds
  value: Number


class CurveGroup(NamedTuple):
  """The charts of one quantity, one for each x-axis."""

  title: str
  charts: list[Chart]


def curve_points(run: RunFiles, split: str, name: str) -> list[CurvePoint]:
  """A run's values of a quantity on a split, without values that are not finite."""
  spent = {0: (0.0, 0.0)}
  megabytes = seconds = 0.0
  for line in run.of("train"):
    megabytes += line["bytes_up"] / 1e6
    seconds += line["seconds"]
    spent[line["round"]] = megabytes, seconds
  return [
    CurvePoint(line["round"], *spent[line["round"]], line[name])
    for line in run.of(split)
    if line.get(name) is not None and line["round"] in spent
  ]


def thin_out(items: Sequence[T], most: int) -> list[T]:
  """At most `most` of the items, evenly spread; the first and the last are kept."""
  if len(items) <= most:
    return list(items)
  return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def curve_groups(runs: Sequence[RunFiles]) -> list[CurveGroup]:
  """Charts of every quantity: a line for each split of one run, or for each of several runs."""
  out = []
  for name, title in TITLES.items():
    splits = tuple(_SPLITS) if name == "loss" else ("val",)
    found = {(run.name, split): curve_points(run, split, name) for run in runs for split in splits}
    if len(runs) == 1:
      panels = {title: {_SPLITS[split]: points for (_, split), points in found.items() if points}}
    else:
      panels = {
        title if len(splits) == 1 else f"{title} in {_SPLITS[split]}": {
          run: points for (run, of), points in found.items() if of == split
        }
        for split in splits
      }
    out += [
      CurveGroup(panel, [_chart(panel, _MEANING[name], lines, *axis) for axis in _X_AXES])
      for panel, lines in panels.items()
      if any(lines.values())
    ]
  spent = {run.name: curve_points(run, "train", "epsilon") for run in runs}
  if any(spent.values()):
    lines = {name: points for name, points in spent.items() if points}
    out.append(CurveGroup("Privacy spent", [_chart("ε", _EPSILON, lines, *_X_AXES[0])]))
  return out


def _chart(
  title: str,
  meaning: str,
  lines: Mapping[str, Sequence[CurvePoint]],
  field: str,
  axis: str,
  ending: str,
  caption: str,
) -> Chart:
  places = {
    name: [(getattr(point, field), point.value) for point in thin_out(points, MOST)]
    for name, points in lines.items()
  }
  rows = [{"x": x, "y": y, "series": name} for name, found in places.items() for x, y in found]
  alt = ". ".join(
    f"{name}: {charts.describe_trend(found, field)}" for name, found in places.items()
  )
  spec = charts.line_spec(rows, AxisTitles(axis, title), list(lines))
  return charts.draw_chart(f"{title} {ending}", caption or meaning, alt, spec)


_SPLITS = {"val": "validation", "train": "training"}


def curves_table(runs: Sequence[RunFiles]) -> Table:
  """The numbers of the curves: a row for each scored round."""
  names = [name for name in TITLES if any(curve_points(run, "val", name) for run in runs)]
  head = ["Run"] * (len(runs) > 1) + ["Round", "MB sent", "Seconds", "Training loss"]
  head += [TITLES[name] if name != "loss" else "Validation loss" for name in names]
  rows = []
  for run in runs:
    trained = {point.round: point for point in curve_points(run, "train", "loss")}
    scored = {name: {p.round: p for p in curve_points(run, "val", name)} for name in names}
    for round in thin_out(sorted({r for points in scored.values() for r in points}), MOST):
      point = next(points[round] for points in scored.values() if round in points)
      values = [trained[round].value if round in trained else None]
      values += [scored[name][round].value if round in scored[name] else None for name in names]
      cells = [run.name] * (len(runs) > 1)
      cells += [str(round), f"{point.megabytes:.2f}", f"{point.seconds:.1f}"]
      rows.append(cells + [format_number(value) for value in values])
  return Table("Loss and scores on the validation split", head, rows)
