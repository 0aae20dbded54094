"""How loss and scores went, over rounds, bytes and seconds."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from afspl_jax.report import charts
from afspl_jax.report.charts import Axes, Chart
from afspl_jax.report.files import Run
from afspl_jax.report.tables import Table, number

T = TypeVar("T")

MOST = 240  # points of a line; more cannot be told apart
_TITLES = {
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
  megabytes: float  # sent by all clients
  seconds: float  # in training rounds
  value: float


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
  points = [
    Point(line["round"], *spent[line["round"]], line[name])
    for line in run.of(split)
    if line.get(name) is not None and line["round"] in spent
  ]
  return thinned(points, MOST)


def thinned(items: Sequence[T], most: int) -> list[T]:
  """At most so many of the items, evenly spread, the first and the last among them."""
  if len(items) <= most:
    return list(items)
  return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def measures(runs: Sequence[Run]) -> list[Measure]:
  """Charts of every quantity that some run has, the runs over each other."""
  out = []
  for name, title in _TITLES.items():
    splits = ("val", "train") if name == "loss" else ("val",)
    found = {(run.name, split): curve(run, split, name) for run in runs for split in splits}
    if any(found.values()):
      drawn = [_chart(name, title, found, *spent, len(runs) > 1) for spent in _SPENT]
      out.append(Measure(title, drawn))
  return out


def _chart(
  name: str,
  title: str,
  found: dict[tuple[str, str], list[Point]],
  field: str,
  axis: str,
  ending: str,
  caption: str,
  several: bool,
) -> Chart:
  rows, words = [], []
  for (run, split), points in found.items():
    series = run if several else _SPLITS[split]
    places = [(getattr(point, field), point.value) for point in points]
    rows += [{"x": x, "y": y, "series": series, "kind": _SPLITS[split]} for x, y in places]
    label = f"{run}, {_SPLITS[split]}" if several else _SPLITS[split]
    words.append(f"{label}: {charts.trend(places, field)}")
  series_names = list(dict.fromkeys(run if several else _SPLITS[split] for run, split in found))
  kinds = list(dict.fromkeys(_SPLITS[split] for _, split in found))
  dashed = kinds if several and len(kinds) > 1 else ()
  spec = charts.lines(rows, Axes(axis, title), series_names, dashed)
  return charts.chart(f"{title} {ending}", caption or _MEANING[name], ". ".join(words[:12]), spec)


_SPLITS = {"val": "validation", "train": "training"}


def table(runs: Sequence[Run]) -> Table:
  """The numbers of the curves: a row for every round that was scored."""
  names = [name for name in _TITLES if any(curve(run, "val", name) for run in runs)]
  head = ["Run"] * (len(runs) > 1) + ["Round", "MB sent", "Seconds", "Training loss"]
  head += [_TITLES[name] if name != "loss" else "Validation loss" for name in names]
  rows = []
  for run in runs:
    trained = {point.round: point for point in curve(run, "train", "loss")}
    scored = {name: {p.round: p for p in curve(run, "val", name)} for name in names}
    for round in sorted({r for points in scored.values() for r in points}):
      point = next(points[round] for points in scored.values() if round in points)
      values = [trained[round].value if round in trained else None]
      values += [scored[name][round].value if round in scored[name] else None for name in names]
      cells = [run.name] * (len(runs) > 1)
      cells += [str(round), f"{point.megabytes:.2f}", f"{point.seconds:.1f}"]
      rows.append(cells + [number(value) for value in values])
  return Table("Loss and scores on the validation split", head, rows)
