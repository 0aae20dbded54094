"""Renders a report on one or more runs: one HTML file that needs no network and no script."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from afspl_jax.config.experiment import Experiment, to_dict
from afspl_jax.config.fields import leaves
from afspl_jax.errors import UserError
from afspl_jax.evaluation.scores import ANSWERS
from afspl_jax.reporting.gains import describe_gains, find_gains
from afspl_jax.reporting.html import clients, curves, prompts
from afspl_jax.reporting.html.caveats import comparison_caveats, run_caveats
from afspl_jax.reporting.html.charts import Chart
from afspl_jax.reporting.html.curves import TITLES
from afspl_jax.reporting.html.files import RunFiles, read_runs
from afspl_jax.reporting.html.gallery import Gallery, make_gallery
from afspl_jax.reporting.html.joining import joining_charts
from afspl_jax.reporting.html.tables import Table, format_duration, format_number
from afspl_jax.reporting.text_table import format_bytes
from afspl_jax.storage.atomic_files import write_text
from afspl_jax.storage.run_lines import training_bytes

MOST_RUNS = 8  # the number of distinct colours
TEMPLATES = Path(__file__).parent / "templates"
_KEYS = sorted(TITLES, key="loss".__eq__)  # the loss is last
_VIEWS = {
  "val": "validation split, global model",
  "test": "test split, global model",
  "test_blind": "test split, global model without the image",
  "test_mean_fusion": "test split, same fusion weights for every sample",
  "test_common": "common sample, global model",
  "test_personal_common": "common sample, personalised models (mean over clients)",
  "test_personal": "test split, each client's personalised model on its examples",
  "test_alone": "test split, each client's examples by the model that it trained alone",
  "test_pooled": "test split, one model trained on all clients' data",
  "newcomer_global": "newcomers' examples, global model",
  "newcomer_before": "newcomers' examples, local prompt matched in the pool",
  "newcomer_after": "newcomers' examples, each by the copy of the global model that it trained",
}


@dataclass(frozen=True)
class HeadlineFigure:
  """A headline number."""

  name: str
  value: str
  note: str


@dataclass(frozen=True)
class RunSection:
  """The content of a page about one run."""

  run: RunFiles
  summary: str
  figures: Sequence[HeadlineFigure]
  clients: Sequence[Chart]
  client_table: Table
  failures: Table | None
  partition: tuple[Chart, Table] | None
  prompts: Sequence[Chart]
  prompt_tables: Sequence[Table]
  gallery: Gallery
  settings: Table


def write_report(paths: Sequence[Path], out: Path | None = None, images: bool = True) -> Path:
  """Writes a report on one run, or a comparison of several.

  Args:
    paths: the run folders.
    out: the file; default report.html in the first run folder.
    images: whether images of examples are included, if the data are on this machine.

  Returns:
    The file.

  Raises:
    UserError: not a run folder, too many runs, or the file cannot be written.
  """
  if len(paths) > MOST_RUNS:
    raise UserError(f"expected at most {MOST_RUNS} runs in a report; got {len(paths)}")
  file = out or paths[0] / "report.html"
  html = render_page(read_runs(paths), images)
  try:
    write_text(file, html)
  except OSError as error:
    raise UserError(
      f"{file}: expected a file that can be written; got: {error}. Choose another with --out"
    ) from error
  return file


def render_page(
  runs: Sequence[RunFiles], images: bool = True, changed: str = "", live: bool = False
) -> str:
  """The page as HTML.

  Args:
    runs: the runs.
    images: whether images of examples are included.
    changed: the time of the last change of the files, as text.
    live: whether the page updates itself with the dashboard's script.
  """
  started = [run for run in runs if run.config]
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
    sections=[_section(run, images) for run in started],
    caveats=_caveats(started),
    curve_groups=curves.curve_groups(started),
    curve_table=curves.curves_table(started),
    scores=_scores(started),
    differences=_differences(started),
    origins=_origins(started),
    changed=changed,
    live=live,
  )


def _section(run: RunFiles, images: bool) -> RunSection:
  tables = (prompts.fusion_table(run), prompts.pool_table(run))
  settings = [[name, str(value)] for name, value in leaves(run.config).items()]
  return RunSection(
    run=run,
    summary=_summary(run),
    figures=_figures(run),
    clients=[*joining_charts(run), *clients.client_charts(run)],
    client_table=clients.clients_table(run),
    failures=clients.failures_table(run),
    partition=clients.partition_chart(run),
    prompts=[*prompts.fusion_charts(run), *prompts.pool_charts(run)],
    prompt_tables=[table for table in tables if table is not None],
    gallery=make_gallery(run, images),
    settings=Table("All settings", ["Setting", "Value"], settings, frozenset({1})),
  )


def _caveats(runs: Sequence[RunFiles]) -> dict[str, list[str]]:
  """The caveats of each run by its name, and those of all runs by ""."""
  each = {run.name: run_caveats(run) for run in runs}
  if len(runs) < 2:
    return {"": [text for texts in each.values() for text in texts]}
  first, *others = each.values()
  common = [text for text in first if all(text in texts for texts in others)]
  rest = {name: [t for t in texts if t not in common] for name, texts in each.items()}
  return {"": comparison_caveats(runs) + common} | {
    name: texts for name, texts in rest.items() if texts
  }


def _summary(run: RunFiles) -> str:
  """A run in one sentence, and what its sites gain in another."""
  config = run.config
  data, fed, backbone = config["data"], config["fed"], config["backbone"]
  views = {line["split"]: line for line in run.metrics}
  gains = describe_gains(find_gains(views, run.sites))
  return (
    f"{fed['rounds']} rounds of {fed['strategy']} over {data['num_clients']} clients"
    f" ({data['partition']} partition of {data['source']}), CLIP {backbone['clip']} and T5"
    f" {backbone['t5']} frozen, seed {config['seed']}." + (f" {gains}." if gains else "")
  )


def _figures(run: RunFiles) -> list[HeadlineFigure]:
  personalised = run.last("test_personal") or {}
  # If clients share nothing, the model that is scored on the validation split is untrained.
  split = "test" if run.last("test") or personalised else "val"
  line = run.last(split) or {}
  where = "test split" if split == "test" else f"validation, round {line.get('round', 0)}"
  out = []
  for name in ("cider", "bleu4", *ANSWERS):
    if line.get(name) is not None or personalised.get(name) is not None:
      note = where if line.get(name) is not None else ""
      if personalised.get(name) is not None:
        note = f"{note}; personalised {personalised[name]:.3f}".removeprefix("; ")
      out.append(HeadlineFigure(TITLES[name], format_number(line.get(name)), note))
  trained = run.of("train")
  up, down = training_bytes(run.metrics)
  total = sum(line.get("seconds", 0) for line in run.metrics)
  training = sum(line["seconds"] for line in trained)
  outcomes = [clients.update_outcome(line) for line in run.clients]
  used, lost = outcomes.count(clients.USED), outcomes.count(clients.MISSED)
  names = {line["client"] for line in run.clients}
  return [
    *out,
    HeadlineFigure("Bytes", format_bytes(up), f"sent by clients; {format_bytes(down)} received"),
    HeadlineFigure("Time", format_duration(total), f"training: {format_duration(training)}"),
    HeadlineFigure("Updates", f"{used} used", f"{lost} not used; from {len(names)} clients"),
  ]


def _scores(runs: Sequence[RunFiles]) -> Table | None:
  """The last scores of the runs in every view."""
  rows = []
  found = [(run, view, line) for view in _VIEWS for run in runs if (line := run.last(view))]
  keys = [key for key in _KEYS if any(line.get(key) is not None for _, _, line in found)]
  for run, view, line in found:
    cells = [_VIEWS[view], *([run.name] * (len(runs) > 1)), str(line["round"])]
    rows.append(cells + [format_number(line.get(key)) for key in keys])
  if not rows:
    return None
  head = ["Scored on", *(["Run"] * (len(runs) > 1)), "Round", *(TITLES[key] for key in keys)]
  return Table("Last scores", head, rows, frozenset({1} if len(runs) > 1 else ()))


def _differences(runs: Sequence[RunFiles]) -> Table:
  """Settings that are not the default in some run; those in which the runs differ come first."""
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


def _origins(runs: Sequence[RunFiles]) -> Table:
  """Versions, devices, and hashes of the inputs."""
  found = [
    {
      **{f"version of {name}": value for name, value in run.versions.items()},
      **_places(run),
      **{f"hash of {name}": value for name, value in leaves(run.facts).items()},
    }
    for run in runs
  ]
  names = list(dict.fromkeys(name for one in found for name in one))
  rows = [[name, *(str(one.get(name, "–")) for one in found)] for name in names]
  head = ["Item", *(run.name for run in runs)]
  return Table("Versions, devices and hashes", head, rows, frozenset(range(1, len(head))))


def _places(run: RunFiles) -> dict[str, str]:
  """The machines of a run, in order: it may have been resumed elsewhere."""
  names = dict.fromkeys(name for place in run.places for name in place)
  return {
    name: ", then ".join(str(place[name]) for place in run.places if name in place)
    for name in names
  }
