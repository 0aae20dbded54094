"""How loss and scores went, over rounds, bytes and seconds."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from afspl_jax.reporting.html import charts
from afspl_jax.reporting.html.charts import Axes, Chart
from afspl_jax.reporting.html.files import Run
from afspl_jax.reporting.html.tables import Number, Table, number

T = TypeVar("T")

MOST = 240  # points of a line; more cannot be told apart
TITLES = {
  "loss": "Loss",
  "cider": "CIDEr",
  "bleu4": "BLEU-4",
  "rouge_l": "ROUGE-L",
  "vqa_accuracy": "VQA accuracy",
}
_MEANING = {
  "loss": "Cross-entropy in nats a token; lower is better.",
  "cider": "Likeness of captions to people's, from 0 to 10; higher is better.",
  "bleu4": "Share of four-word runs that references also have, from 0 to 1; higher is better.",
  "rouge_l": "Longest common run of words with a reference, from 0 to 1; higher is better.",
  "vqa_accuracy": "Share of questions answered right, from 0 to 1; higher is better.",
}
_EPSILON = (
  "What all rounds so far tell of one client, at most: differential privacy's ε at the run's δ;"
  " lower is better."
)
# How far a run had come: field of a point, title of the axis, ending of the chart's title, caption.
_SPENT = (
  ("round", "round", "by round", ""),
  (
    "megabytes",
    "sent by all clients (MB)",
    "by bytes sent",
    "The same, over what clients had sent.",
  ),
  (
    "seconds",
    "training (seconds)",
    "by time",
    "The same, over the seconds that training had taken.",
  ),
)


class Point(NamedTuple):
  """A measurement, and what the run had spent by then."""

  round: int
  megabytes: Number  # sent by all clients
  seconds: Number  # in training rounds
  value: Number


class Measure(NamedTuple):
  """A quantity with its charts, one a way to count what was spent."""

  title: str
  charts: list[Chart]


def curve(run: Run, split: str, name: str) -> list[Point]:
  """A run's values of a quantity on a split; those that are not finite are left out."""
  spent = {0: (0.0, 0.0)}
  megabytes = seconds = 0.0
  for line in run.of("train"):
    megabytes += line["bytes_up"] / 1e6
    seconds += line["seconds"]
    spent[line["round"]] = megabytes, seconds
  return [
    Point(line["round"], *spent[line["round"]], line[name])
    for line in run.of(split)
    if line.get(name) is not None and line["round"] in spent
  ]


def thinned(items: Sequence[T], most: int) -> list[T]:
  """At most so many of the items, evenly spread, the first and the last among them."""
  if len(items) <= most:
    return list(items)
  return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def measures(runs: Sequence[Run]) -> list[Measure]:
  """Charts of every quantity that some run has: of one run its splits, of several the runs."""
  out = []
  for name, title in TITLES.items():
    splits = tuple(_SPLITS) if name == "loss" else ("val",)
    found = {(run.name, split): curve(run, split, name) for run in runs for split in splits}
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
      Measure(panel, [_chart(panel, _MEANING[name], lines, *spent) for spent in _SPENT])
      for panel, lines in panels.items()
      if any(lines.values())
    ]
  spent = {run.name: curve(run, "train", "epsilon") for run in runs}
  if any(spent.values()):
    lines = {name: points for name, points in spent.items() if points}
    out.append(Measure("Privacy spent", [_chart("ε", _EPSILON, lines, *_SPENT[0])]))
  return out


def _chart(
  title: str,
  meaning: str,
  lines: Mapping[str, Sequence[Point]],
  field: str,
  axis: str,
  ending: str,
  caption: str,
) -> Chart:
  places = {
    name: [(getattr(point, field), point.value) for point in thinned(points, MOST)]
    for name, points in lines.items()
  }
  rows = [{"x": x, "y": y, "series": name} for name, found in places.items() for x, y in found]
  alt = ". ".join(f"{name}: {charts.trend(found, field)}" for name, found in places.items())
  spec = charts.lines(rows, Axes(axis, title), list(lines))
  return charts.chart(f"{title} {ending}", caption or meaning, alt, spec)


_SPLITS = {"val": "validation", "train": "training"}


def table(runs: Sequence[Run]) -> Table:
  """The numbers of the curves: a row for every round that was scored."""
  names = [name for name in TITLES if any(curve(run, "val", name) for run in runs)]
  head = ["Run"] * (len(runs) > 1) + ["Round", "MB sent", "Seconds", "Training loss"]
  head += [TITLES[name] if name != "loss" else "Validation loss" for name in names]
  rows = []
  for run in runs:
    trained = {point.round: point for point in curve(run, "train", "loss")}
    scored = {name: {p.round: p for p in curve(run, "val", name)} for name in names}
    for round in thinned(sorted({r for points in scored.values() for r in points}), MOST):
      point = next(points[round] for points in scored.values() if round in points)
      values = [trained[round].value if round in trained else None]
      values += [scored[name][round].value if round in scored[name] else None for name in names]
      cells = [run.name] * (len(runs) > 1)
      cells += [str(round), f"{point.megabytes:.2f}", f"{point.seconds:.1f}"]
      rows.append(cells + [number(value) for value in values])
  return Table("Loss and scores on the validation split", head, rows)
