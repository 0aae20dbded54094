"""A page that shows what runs did: one HTML file that needs no network and no script."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from afspl_jax.config.experiment import Experiment, to_dict
from afspl_jax.config.fields import leaves
from afspl_jax.errors import UserError
from afspl_jax.reporting.html import clients, curves, prompts
from afspl_jax.reporting.html.caveats import caveats, comparison
from afspl_jax.reporting.html.charts import Chart
from afspl_jax.reporting.html.curves import TITLES
from afspl_jax.reporting.html.files import Run, read_all
from afspl_jax.reporting.html.gallery import Gallery, gallery
from afspl_jax.reporting.html.tables import Table, duration, number
from afspl_jax.reporting.text_table import size
from afspl_jax.storage.atomic_files import write_text

MOST_RUNS = 8  # that colours tell apart
TEMPLATES = Path(__file__).parent / "templates"
_KEYS = sorted(TITLES, key="loss".__eq__)  # the loss as the last
_VIEWS = {
  "val": "validation split, global prompter",
  "test": "test split, global prompter",
  "test_blind": "test split, global prompter shown no image",
  "test_mean_fusion": "test split, one set of fusion weights for every sample",
  "test_common": "examples that every client answers, global prompter",
  "test_personal_common": "the same examples, own prompters: the mean over clients",
  "test_personal": "test split, own prompters on their clients' examples",
  "newcomer_global": "newcomers' examples, global prompter",
  "newcomer_before": "newcomers' examples, with what they match in the pool",
  "newcomer_after": "newcomers' examples, after a round of their own training",
}


@dataclass(frozen=True)
class Figure:
  """A headline figure."""

  name: str
  value: str
  note: str


@dataclass(frozen=True)
class Part:
  """What a page says of one run alone."""

  run: Run
  what: str
  figures: Sequence[Figure]
  clients: Sequence[Chart]
  client_table: Table
  failures: Table | None
  partition: tuple[Chart, Table] | None
  prompts: Sequence[Chart]
  prompt_tables: Sequence[Table]
  gallery: Gallery
  settings: Table


def write(paths: Sequence[Path], out: Path | None = None, images: bool = True) -> Path:
  """Writes a report about one run, or about several beside each other.

  Args:
    paths: folders of the runs.
    out: the file; default report.html in the folder of the first.
    images: whether images of examples are in it, where they are on this machine.

  Returns:
    The file.

  Raises:
    UserError: not a run's folder, too many of them, or a file that cannot be written.
  """
  if len(paths) > MOST_RUNS:
    raise UserError(f"expected at most {MOST_RUNS} runs in a report; got {len(paths)}")
  file = out or paths[0] / "report.html"
  html = render(read_all(paths), images)
  try:
    write_text(file, html)
  except OSError as error:
    raise UserError(
      f"{file}: expected a file that can be written; got: {error}. Choose another with --out"
    ) from error
  return file


def render(runs: Sequence[Run], images: bool = True, changed: str = "", live: bool = False) -> str:
  """The page as HTML.

  Args:
    runs: what it is about.
    images: whether images of examples are in it.
    changed: when the runs' files last changed, for people.
    live: whether the page keeps itself up to date, by a script from the dashboard.
  """
  begun = [run for run in runs if run.config]
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(TEMPLATES),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  return environment.get_template("page.html").render(
    title=", ".join(run.name for run in runs),
    runs=runs,
    parts=[_part(run, images) for run in begun],
    caveats=_caveats(begun),
    measures=curves.measures(begun),
    curve_table=curves.table(begun),
    scores=_scores(begun),
    differences=_differences(begun),
    origins=_origins(begun),
    changed=changed,
    live=live,
  )


def _part(run: Run, images: bool) -> Part:
  tables = (prompts.fusion_table(run), prompts.pool_table(run))
  settings = [[name, str(value)] for name, value in leaves(run.config).items()]
  return Part(
    run=run,
    what=_what(run),
    figures=_figures(run),
    clients=clients.pictures(run),
    client_table=clients.table(run),
    failures=clients.failures(run),
    partition=clients.partition(run),
    prompts=[*prompts.fusion(run), *prompts.pool(run)],
    prompt_tables=[table for table in tables if table is not None],
    gallery=gallery(run, images),
    settings=Table("All settings", ["Setting", "Value"], settings, frozenset({1})),
  )


def _caveats(runs: Sequence[Run]) -> dict[str, list[str]]:
  """Sentences about each run by its name; about all of them by ""."""
  each = {run.name: caveats(run) for run in runs}
  if len(runs) < 2:
    return {"": [text for texts in each.values() for text in texts]}
  first, *others = each.values()
  common = [text for text in first if all(text in texts for texts in others)]
  rest = {name: [t for t in texts if t not in common] for name, texts in each.items()}
  return {"": comparison(runs) + common} | {name: texts for name, texts in rest.items() if texts}


def _what(run: Run) -> str:
  """A run in one sentence."""
  config = run.config
  data, fed, backbone = config["data"], config["fed"], config["backbone"]
  return (
    f"{fed['rounds']} rounds of {fed['strategy']} over {data['num_clients']} clients"
    f" ({data['partition']} partition of {data['source']}), CLIP {backbone['clip']} and T5"
    f" {backbone['t5']} frozen, seed {config['seed']}."
  )


def _figures(run: Run) -> list[Figure]:
  own = run.last("test_personal") or {}
  # Clients that share nothing have no global prompter: that on the validation split is untrained.
  split = "test" if run.last("test") or own else "val"
  line = run.last(split) or {}
  where = "test split" if split == "test" else f"validation, round {line.get('round', 0)}"
  out = []
  for name in ("cider", "bleu4", "vqa_accuracy"):
    if line.get(name) is not None or own.get(name) is not None:
      note = where if line.get(name) is not None else ""
      if own.get(name) is not None:
        note = f"{note}; own prompters {own[name]:.3f}".removeprefix("; ")
      out.append(Figure(TITLES[name], number(line.get(name)), note))
  trained = run.of("train")
  up, down = (sum(line[key] for line in trained) for key in ("bytes_up", "bytes_down"))
  total = sum(line.get("seconds", 0) for line in run.metrics)
  training = sum(line["seconds"] for line in trained)
  outcomes = [clients.outcome(line) for line in run.clients]
  used, lost = outcomes.count(clients.USED), outcomes.count(clients.MISSED)
  names = {line["client"] for line in run.clients}
  return [
    *out,
    Figure("Bytes", size(up), f"sent by clients; {size(down)} sent to them"),
    Figure("Time", duration(total), f"{duration(training)} of it training"),
    Figure("Updates", f"{used} ok", f"{lost} failed; of {len(names)} clients"),
  ]


def _scores(runs: Sequence[Run]) -> Table | None:
  """Every way in which the runs were scored last."""
  rows = []
  found = [(run, view, line) for view in _VIEWS for run in runs if (line := run.last(view))]
  keys = [key for key in _KEYS if any(line.get(key) is not None for _, _, line in found)]
  for run, view, line in found:
    cells = [_VIEWS[view], *([run.name] * (len(runs) > 1)), str(line["round"])]
    rows.append(cells + [number(line.get(key)) for key in keys])
  if not rows:
    return None
  head = ["Scored on", *(["Run"] * (len(runs) > 1)), "Round", *(TITLES[key] for key in keys)]
  return Table("Last scores", head, rows, frozenset({1} if len(runs) > 1 else ()))


def _differences(runs: Sequence[Run]) -> Table:
  """Settings of some run that are not the default, with those in which the runs differ first."""
  default = leaves(to_dict(Experiment()))
  configs = [leaves(run.config) for run in runs]
  names = list(dict.fromkeys(name for config in [default, *configs] for name in config))
  rows = []
  for name in names:
    values = [config.get(name, "(absent)") for config in configs]
    if any(value != default.get(name, "(absent)") for value in values):
      differ = len(set(map(str, values))) > 1
      texts = [str(value) for value in (default.get(name, "(absent)"), *values)]
      rows.append((not differ, [name, *texts, *(["yes" if differ else "no"] * (len(runs) > 1))]))
  rows.sort(key=lambda row: row[0])
  head = ["Setting", "Default", *(run.name for run in runs)]
  head += ["Runs differ"] * (len(runs) > 1)
  words = frozenset(range(1, len(head)))
  return Table("Settings that are not the default", head, [cells for _, cells in rows], words)


def _origins(runs: Sequence[Run]) -> Table:
  """Versions, devices, and hashes of what went in."""
  found = [
    {
      **{f"version of {name}": value for name, value in run.versions.items()},
      **_places(run),
      **{f"hash of {name}": value for name, value in leaves(run.facts).items()},
    }
    for run in runs
  ]
  names = list(dict.fromkeys(name for of in found for name in of))
  rows = [[name, *(str(of.get(name, "–")) for of in found)] for name in names]
  head = ["What", *(run.name for run in runs)]
  return Table("Versions, devices and hashes", head, rows, frozenset(range(1, len(head))))


def _places(run: Run) -> dict[str, str]:
  """Where a run was at work, one place after the other: it may have gone on elsewhere."""
  names = dict.fromkeys(name for place in run.places for name in place)
  return {
    name: ", then ".join(str(place[name]) for place in run.places if name in place)
    for name in names
  }
