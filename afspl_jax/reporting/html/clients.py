"""Charts and tables of a run's clients: their data, updates and scores."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from afspl_jax.evaluation.scores import ANSWERS
from afspl_jax.reporting.html import charts
from afspl_jax.reporting.html.charts import AxisTitles, Chart
from afspl_jax.reporting.html.curves import TITLES, thin_out
from afspl_jax.reporting.html.files import RunFiles
from afspl_jax.reporting.html.tables import Number, Table, format_number
from afspl_jax.reporting.status import JsonLine
from afspl_jax.reporting.text_table import format_bytes
from afspl_jax.storage.client_status import Outcome, parse_status

NAMED = 30  # clients that a chart names; with more clients, it shows their distribution
_LABELS = 12  # labels in the chart of the partition
_FAILURES = 100  # newest failures in the table
_ROUNDS = 50  # bars over rounds
_BINS = 20
USED, MISSED, LATE = "used", "not used", "late"


@dataclass
class ClientSummary:
  """One client in a run."""

  name: str
  examples: int | None = None  # training examples
  held: dict[str, int] = field(default_factory=dict)  # examples by split, if the partition is known
  used: int = 0  # updates that were averaged
  missed: int = 0
  bytes_up: int = 0
  loss: Number | None = None
  last: str = ""  # its status in its last round
  scores: JsonLine = field(default_factory=dict)  # from sites.jsonl


def update_outcome(line: JsonLine) -> str:
  """The outcome of a client's update in a round: USED, MISSED or LATE.

  LATE is not a second loss: another line of the same round and client already has MISSED.
  """
  shown = {Outcome.OK: USED, Outcome.LATE: LATE}
  return shown.get(parse_status(line["status"]).outcome, MISSED)


def summarise_clients(run: RunFiles) -> list[ClientSummary]:
  """All clients in the files of a run, by name."""
  found: dict[str, ClientSummary] = {}

  def of(name: str) -> ClientSummary:
    return found.setdefault(name, ClientSummary(name))

  for name, parts in run.partition.get("clients", {}).items():
    of(name).held = {split: len(ids) for split, ids in parts.items()}
    of(name).examples = of(name).held.get("train")
  for line in run.clients:
    client = of(line["client"])
    client.used += update_outcome(line) == USED
    client.missed += update_outcome(line) == MISSED
    client.bytes_up += line["bytes_up"]
    client.last = f"round {line['round']}: {line['status']}"
    if line["num_examples"] is not None and not client.held:
      client.examples = line["num_examples"]
    if line["loss"] is not None:
      client.loss = line["loss"]
  for line in run.sites:
    of(line["client"]).scores = line
  return [found[name] for name in sorted(found)]


def client_charts(run: RunFiles) -> list[Chart]:
  """Outcomes by round, scores of both models, and the number of examples of each client."""
  who = summarise_clients(run)
  drawn = [_outcomes(run)] if run.clients else []
  scored = ("cider", *ANSWERS)
  drawn += [found for name in scored if (found := _score_chart(who, name, TITLES[name]))]
  sizes = [client for client in who if client.examples is not None]
  return drawn + ([_sizes(sizes)] if sizes else [])


def _outcomes(run: RunFiles) -> Chart:
  outcomes = [(line["round"], update_outcome(line)) for line in run.clients]
  counts = Counter((round, kind) for round, kind in outcomes if kind != LATE)
  last = max(line["round"] for line in run.clients)
  step = -(-last // _ROUNDS)  # rounds a bar
  kinds = [kind for kind in (USED, MISSED) if any(k == kind for _, k in counts)]
  binned = Counter[tuple[int, str]]()
  for (round, kind), count in counts.items():
    binned[(round - 1) // step, kind] += count
  rows = []
  for (i, kind), count in sorted(binned.items()):
    low, high = i * step, min((i + 1) * step, last)  # the last bar may have fewer rounds
    mean = count / (high - low)
    rows.append({"x": low + 0.5, "x2": high + 0.5, "y": mean, "series": kind})
  totals = {kind: sum(n for (_, k), n in counts.items() if k == kind) for kind in kinds}
  caption = "Number of clients whose updates were used in each round, and number not used."
  if step > 1:
    caption += f" A bar is the mean of {step} rounds"
    caption += f", the last bar of {last % step}." if last % step else "."
  alt = ", ".join(f"{total} {kind}" for kind, total in totals.items()) + f" in {last} rounds"
  spec = charts.bar_spec(rows, AxisTitles("round", "clients"), kinds)
  return charts.draw_chart("Client updates by round", caption, alt, spec)


def _score_chart(who: Sequence[ClientSummary], name: str, title: str) -> Chart | None:
  """A score of each client by the global and by its personalised model."""
  personalised, by_global = f"personal_{name}", f"global_{name}"
  scored = [client for client in who if client.scores.get(personalised) is not None]
  if not scored:
    return None
  scored.sort(key=lambda client: -client.scores[personalised])
  both = [client for client in scored if client.scores.get(by_global) is not None]
  better = sum(client.scores[personalised] > client.scores[by_global] for client in both)
  alt = f"{len(scored)} clients" + (
    f", {better} of {len(both)} better by the personalised model" if both else ""
  )
  keys = {"global model": by_global, "personalised model": personalised}
  named = len(scored) <= NAMED or not both
  caption, spec = _named_scores(scored, keys, title) if named else _scattered_scores(both, keys)
  return charts.draw_chart(f"{title} of each client", caption, alt, spec)


def _named_scores(
  scored: Sequence[ClientSummary], keys: Mapping[str, str], title: str
) -> tuple[str, charts.Spec]:
  """Caption and chart with a row for each client."""
  shown = thin_out(scored, NAMED)
  rows = [
    {"name": client.name, "x": client.scores[key], "series": series}
    for client in shown
    for series, key in keys.items()
    if client.scores.get(key) is not None
  ]
  series = [name for name in keys if any(row["series"] == name for row in rows)]
  names = [client.name for client in shown]
  caption = "On the test examples of the client: by the global model and by its personalised model."
  return caption, charts.ranked_spec(rows, AxisTitles(title, ""), names, series)


def _scattered_scores(
  both: Sequence[ClientSummary], keys: Mapping[str, str]
) -> tuple[str, charts.Spec]:
  """Caption and chart with a point for each client."""
  rows = [
    {axis: client.scores[key] for axis, key in zip("xy", keys.values(), strict=True)}
    for client in thin_out(both, 2000)
  ]
  top = max(max(row.values()) for row in rows) or 1.0
  caption = (
    "A point is a client, on its test examples. Above the diagonal, the personalised model is"
    " better."
  )
  axes = AxisTitles("global model", "personalised model")
  return caption, charts.scatter_spec(rows, axes, top)


def _sizes(who: Sequence[ClientSummary]) -> Chart:
  counts = [client.examples or 0 for client in who]
  low, high = min(counts), max(counts)
  alt = f"{len(who)} clients with {low} to {high} examples, {sum(counts)} in total"
  title = "Training examples of each client"
  if len(who) <= NAMED:
    shown = sorted(who, key=lambda client: -(client.examples or 0))
    rows = [{"name": client.name, "x": client.examples} for client in shown]
    spec = charts.length_spec(
      rows, AxisTitles("training examples", ""), [client.name for client in shown]
    )
    return charts.draw_chart(title, "Number of training examples of each client.", alt, spec)
  step = max(1, -(-(high + 1 - low) // _BINS))
  binned = Counter((count - low) // step for count in counts)
  rows = [
    {"x": low + i * step, "x2": low + (i + 1) * step, "y": n, "series": "clients"}
    for i, n in sorted(binned.items())
  ]
  spec = charts.bar_spec(rows, AxisTitles("training examples", "clients"), ["clients"])
  return charts.draw_chart(
    title, "Distribution of clients over their number of training examples.", alt, spec
  )


def partition_chart(run: RunFiles) -> tuple[Chart, Table] | None:
  """The labels of clients' training examples as a heat map, and its numbers as a table."""
  labels = {name: counts for name, counts in run.partition.get("labels", {}).items() if counts}
  if not labels:
    return None
  totals = Counter[str]()
  for counts in labels.values():
    totals.update(counts)
  names = [label for label, _ in totals.most_common(_LABELS)]
  by_size = sorted(labels, key=lambda client: (-sum(labels[client].values()), client))
  shown = thin_out(by_size, NAMED)
  others = "all others"
  rows = {}
  for client in shown:
    counts = labels[client]
    rows[client] = {label: counts.get(label, 0) for label in names}
    if len(totals) > len(names):
      rows[client][others] = sum(counts.values()) - sum(rows[client].values())
  columns = list(rows[shown[0]])
  cells = [
    {"across": label, "down": client, "value": count / max(1, sum(labels[client].values()))}
    for client, of in rows.items()
    for label, count in of.items()
  ]
  kind = run.partition.get("partition", "unknown")
  caption = "Fraction of each label in a client's training examples; a stronger colour means more."
  if len(shown) < len(labels):
    caption += f" Shows {len(shown)} of {len(labels)} clients, from the largest to the smallest."
  alt = f"{len(labels)} clients and {len(totals)} labels, partition {kind}"
  spec = charts.heat_spec(cells, AxisTitles("", ""), columns, shown)
  picture = charts.draw_chart(f"Labels by client (partition: {kind})", caption, alt, spec)
  numbers = [[client, *(str(count) for count in of.values())] for client, of in rows.items()]
  return picture, Table("Training examples by client and label", ["Client", *columns], numbers)


def clients_table(run: RunFiles) -> Table:
  """All clients, with the numbers that the charts show."""
  who = summarise_clients(run)
  splits = [name for name in ("train", "validation", "test") if any(name in c.held for c in who)]
  keys = [k for k in _COLUMNS if any(client.scores.get(k) is not None for client in who)]
  head = ["Client", *(f"Examples, {split}" for split in splits)]
  head += ["Training examples"] * (not splits)
  head += ["Updates used", "Not used", "Sent", "Last loss"]
  head += [*(_COLUMNS[key] for key in keys), "Last status"]
  rows = []
  for client in who:
    cells = [str(client.held.get(split, 0)) for split in splits]
    cells += ["–" if client.examples is None else str(client.examples)] * (not splits)
    cells += [
      str(client.used),
      str(client.missed),
      format_bytes(client.bytes_up),
      format_number(client.loss),
    ]
    cells += [format_number(client.scores.get(key)) for key in keys]
    rows.append([client.name, *cells, client.last])
  return Table("All clients", head, rows, frozenset({len(head) - 1}))


_COLUMNS = {
  "global_cider": "CIDEr, global model",
  "personal_cider": "CIDEr, personalised",
  "alone_cider": "CIDEr, trained alone",
  "pooled_cider": "CIDEr, all data in one place",
  "global_exact_match": "Exact match, global model",
  "personal_exact_match": "Exact match, personalised",
  "alone_exact_match": "Exact match, trained alone",
  "pooled_exact_match": "Exact match, all data in one place",
  "global_vqa_accuracy": "VQA accuracy, global model",
  "personal_vqa_accuracy": "VQA accuracy, personalised",
  "alone_vqa_accuracy": "VQA accuracy, trained alone",
  "pooled_vqa_accuracy": "VQA accuracy, all data in one place",
}


def failures_table(run: RunFiles) -> Table | None:
  """The newest updates that were not used, with the reason."""
  lines = [line for line in run.clients if update_outcome(line) == MISSED]
  if not lines:
    return None
  rows = [
    [str(line["round"]), line["client"], line["status"]] for line in lines[: -_FAILURES - 1 : -1]
  ]
  caption = f"{len(lines)} updates were not used"
  if len(rows) < len(lines):
    caption += f"; shown: the newest {len(rows)}. All are in clients.jsonl"
  return Table(caption, ["Round", "Client", "Reason"], rows, frozenset({1, 2}))
