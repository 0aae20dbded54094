"""Who took part in a run, with what, how it went, and what became of each."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from afspl_jax.reporting.html import charts
from afspl_jax.reporting.html.charts import Axes, Chart
from afspl_jax.reporting.html.curves import TITLES, thinned
from afspl_jax.reporting.html.files import Run
from afspl_jax.reporting.html.tables import Number, Table, number
from afspl_jax.reporting.status import Line
from afspl_jax.reporting.text_table import size
from afspl_jax.storage.client_status import Outcome, parse_status

NAMED = 30  # clients that a chart names; of more it shows how they are distributed
_LABELS = 12  # that the picture of the partition tells apart
_FAILURES = 100  # newest, in the table
_ROUNDS = 50  # bars over rounds
_BINS = 20
USED, MISSED, LATE = "used", "not used", "late"


@dataclass
class Client:
  """One client's part in a run."""

  name: str
  examples: int | None = None  # that it trains on
  held: dict[str, int] = field(default_factory=dict)  # of each split, where the partition is known
  used: int = 0  # updates that went into an average
  missed: int = 0
  bytes_up: int = 0
  loss: Number | None = None
  last: str = ""  # what became of it in its last round
  scores: Line = field(default_factory=dict)  # of sites.jsonl


def outcome(line: Line) -> str:
  """What became of a client's part in a round: USED, MISSED or LATE.

  A late reply is no further loss: a line of the same round and client says MISSED already.
  """
  shown = {Outcome.OK: USED, Outcome.LATE: LATE}
  return shown.get(parse_status(line["status"]).outcome, MISSED)


def clients(run: Run) -> list[Client]:
  """Everyone that the run's files name, by name."""
  found: dict[str, Client] = {}

  def of(name: str) -> Client:
    return found.setdefault(name, Client(name))

  for name, parts in run.partition.get("clients", {}).items():
    of(name).held = {split: len(ids) for split, ids in parts.items()}
    of(name).examples = of(name).held.get("train")
  for line in run.clients:
    client = of(line["client"])
    client.used += outcome(line) == USED
    client.missed += outcome(line) == MISSED
    client.bytes_up += line["bytes_up"]
    client.last = f"round {line['round']}: {line['status']}"
    if line["num_examples"] is not None and not client.held:
      client.examples = line["num_examples"]
    if line["loss"] is not None:
      client.loss = line["loss"]
  for line in run.sites:
    of(line["client"]).scores = line
  return [found[name] for name in sorted(found)]


def pictures(run: Run) -> list[Chart]:
  """Outcomes round by round, scores by both prompters, and how many examples each client has."""
  who = clients(run)
  drawn = [_outcomes(run)] if run.clients else []
  scored = ("cider", "vqa_accuracy")
  drawn += [found for name in scored if (found := _scores(who, name, TITLES[name]))]
  sizes = [client for client in who if client.examples is not None]
  return drawn + ([_sizes(sizes)] if sizes else [])


def _outcomes(run: Run) -> Chart:
  told = [(line["round"], outcome(line)) for line in run.clients]
  counts = Counter((round, kind) for round, kind in told if kind != LATE)
  last = max(line["round"] for line in run.clients)
  step = -(-last // _ROUNDS)  # rounds a bar
  kinds = [kind for kind in (USED, MISSED) if any(k == kind for _, k in counts)]
  binned = Counter[tuple[int, str]]()
  for (round, kind), count in counts.items():
    binned[(round - 1) // step, kind] += count
  rows = []
  for (i, kind), count in sorted(binned.items()):
    low, high = i * step, min((i + 1) * step, last)  # the last bar may be of fewer rounds
    mean = count / (high - low)
    rows.append({"x": low + 0.5, "x2": high + 0.5, "y": mean, "series": kind})
  totals = {kind: sum(n for (_, k), n in counts.items() if k == kind) for kind in kinds}
  caption = "How many clients' updates went into each round's average, and how many did not."
  if step > 1:
    caption += f" A bar is the mean of {step} rounds"
    caption += f", the last one of {last % step}." if last % step else "."
  alt = ", ".join(f"{total} {kind}" for kind, total in totals.items()) + f" in {last} rounds"
  spec = charts.bars(rows, Axes("round", "clients"), kinds)
  return charts.chart("Updates of clients by round", caption, alt, spec)


def _scores(who: Sequence[Client], name: str, title: str) -> Chart | None:
  keys = {"global prompter": f"global_{name}", "own prompter": f"personal_{name}"}
  scored = [client for client in who if client.scores.get(keys["own prompter"]) is not None]
  if not scored:
    return None
  scored.sort(key=lambda client: -client.scores[keys["own prompter"]])
  both = [client for client in scored if client.scores.get(keys["global prompter"]) is not None]
  better = sum(
    client.scores[keys["own prompter"]] > client.scores[keys["global prompter"]] for client in both
  )
  alt = f"{len(scored)} clients" + (
    f", {better} of {len(both)} better by their own" if both else ""
  )
  heading = f"{title} of each client"
  if len(scored) <= NAMED or not both:
    shown = thinned(scored, NAMED)
    rows = [
      {"name": client.name, "x": client.scores[key], "series": series}
      for client in shown
      for series, key in keys.items()
      if client.scores.get(key) is not None
    ]
    series = [name for name in keys if any(row["series"] == name for row in rows)]
    spec = charts.ranked(rows, Axes(title, ""), [client.name for client in shown], series)
    caption = "On its own test examples: by the prompter that all share, and by that with its own"
    return charts.chart(heading, f"{caption} prompt.", alt, spec)
  rows = [
    {axis: client.scores[key] for axis, key in zip("xy", keys.values(), strict=True)}
    for client in thinned(both, 2000)
  ]
  top = max(max(row.values()) for row in rows) or 1.0
  spec = charts.scatter(rows, Axes("by the global prompter", "by its own prompter"), top)
  caption = (
    "A point is a client, on its own test examples. Above the diagonal its own prompt helps."
  )
  return charts.chart(heading, caption, alt, spec)


def _sizes(who: Sequence[Client]) -> Chart:
  counts = [client.examples or 0 for client in who]
  low, high = min(counts), max(counts)
  alt = f"{len(who)} clients with {low} to {high} examples, {sum(counts)} in all"
  title = "Training examples of each client"
  if len(who) <= NAMED:
    shown = sorted(who, key=lambda client: -(client.examples or 0))
    rows = [{"name": client.name, "x": client.examples} for client in shown]
    spec = charts.lengths(rows, Axes("training examples", ""), [client.name for client in shown])
    return charts.chart(title, "How much each client trains on.", alt, spec)
  step = max(1, -(-(high + 1 - low) // _BINS))
  binned = Counter((count - low) // step for count in counts)
  rows = [
    {"x": low + i * step, "x2": low + (i + 1) * step, "y": n, "series": "clients"}
    for i, n in sorted(binned.items())
  ]
  spec = charts.bars(rows, Axes("training examples", "clients"), ["clients"])
  return charts.chart(title, "How many clients train on how much.", alt, spec)


def partition(run: Run) -> tuple[Chart, Table] | None:
  """The labels of clients' training examples, as a picture and as the numbers that it shows."""
  labels = {name: counts for name, counts in run.partition.get("labels", {}).items() if counts}
  if not labels:
    return None
  totals = Counter[str]()
  for counts in labels.values():
    totals.update(counts)
  names = [label for label, _ in totals.most_common(_LABELS)]
  by_size = sorted(labels, key=lambda client: (-sum(labels[client].values()), client))
  shown = thinned(by_size, NAMED)
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
  caption = (
    "The stronger the colour, the larger the label's share of the client's training examples."
  )
  if len(shown) < len(labels):
    caption += f" {len(shown)} of {len(labels)} clients, from the largest to the smallest."
  alt = f"{len(labels)} clients and {len(totals)} labels, partition {kind}"
  spec = charts.heat(cells, Axes("", ""), columns, shown)
  picture = charts.chart(f"Who holds what (partition: {kind})", caption, alt, spec)
  numbers = [[client, *(str(count) for count in of.values())] for client, of in rows.items()]
  return picture, Table("Training examples by client and label", ["Client", *columns], numbers)


def table(run: Run) -> Table:
  """Every client, with all that the charts show of it."""
  who = clients(run)
  splits = [name for name in ("train", "validation", "test") if any(name in c.held for c in who)]
  keys = [k for k in _COLUMNS if any(client.scores.get(k) is not None for client in who)]
  head = ["Client", *(f"Examples, {split}" for split in splits)]
  head += ["Training examples"] * (not splits)
  head += ["Used", "Not used", "Sent", "Last loss", *(_COLUMNS[key] for key in keys), "Last"]
  rows = []
  for client in who:
    cells = [str(client.held.get(split, 0)) for split in splits]
    cells += ["–" if client.examples is None else str(client.examples)] * (not splits)
    cells += [str(client.used), str(client.missed), size(client.bytes_up), number(client.loss)]
    cells += [number(client.scores.get(key)) for key in keys]
    rows.append([client.name, *cells, client.last])
  return Table("All clients", head, rows, frozenset({len(head) - 1}))


_COLUMNS = {
  "global_cider": "CIDEr, global",
  "personal_cider": "CIDEr, own",
  "global_vqa_accuracy": "VQA, global",
  "personal_vqa_accuracy": "VQA, own",
}


def failures(run: Run) -> Table | None:
  """The newest updates that were not used, with the reason."""
  lines = [line for line in run.clients if outcome(line) == MISSED]
  if not lines:
    return None
  rows = [
    [str(line["round"]), line["client"], line["status"]] for line in lines[: -_FAILURES - 1 : -1]
  ]
  caption = f"{len(lines)} updates were not used"
  if len(rows) < len(lines):
    caption += f"; the newest {len(rows)}, all of them in clients.jsonl"
  return Table(caption, ["Round", "Client", "Reason"], rows, frozenset({1, 2}))
