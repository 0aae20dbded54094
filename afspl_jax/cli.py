"""The `afspl` command."""

import argparse
import contextlib
import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from afspl_jax.config.files import CONFIGS
from afspl_jax.errors import UserError
from afspl_jax.evaluation.score_file import score_file
from afspl_jax.runs import use_cli


def main(argv: list[str] | None = None) -> int:
  """Runs one command; returns its status: 2 after a user's mistake, in one clear message."""
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no torch is meant
  parser = argparse.ArgumentParser(prog="afspl", description=__doc__)
  commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
  score = commands.add_parser(
    "score", help="BLEU-1..4, CIDEr and ROUGE-L of a file of predictions, as JSON"
  )
  score.add_argument("file", help='lines like {"prediction": "...", "references": ["...", "..."]}')
  score.set_defaults(run=_score)

  ablate = commands.add_parser(
    "ablate",
    help="run a study of methods, settings and seeds, and tabulate it",
    description="Runs what a study still lacks, then writes table.md, results.json and bytes.png."
    " Exit status: 0 success, 2 a user's mistake, 1 some run failed, 130 interrupted.",
  )
  ablate.add_argument("config", help="a file with get_study(): in configs/, or a path")
  ablate.add_argument("--workdir", type=Path, help="the study's folder; default runs/NAME")
  ablate.add_argument(
    "--jobs", type=int, default=1, help="runs at a time; they share cores and GPU (on a TPU: 1)"
  )
  ablate.add_argument(
    "--only",
    action="append",
    default=[],
    metavar="PART",
    help="only variants with this in their name; may be given again",
  )
  ablate.add_argument("--table", action="store_true", help="run nothing; tabulate what is there")
  ablate.set_defaults(run=_ablate)

  status = commands.add_parser(
    "status", help="what a running or finished federation did: rounds, scores, and every site"
  )
  status.add_argument("folder", type=Path, metavar="RUN", help="the run's folder")
  status.set_defaults(run=_status)

  audit = commands.add_parser(
    "audit",
    help="all that left each client of a run, by name, held against the closed list",
    description="Reads the record that clients keep of what they send. Exit status: 0 all of it is"
    " on the list, 1 something is not, 2 a user's mistake.",
  )
  audit.add_argument("folder", type=Path, metavar="RUN", help="a run's folder, or a site's own")
  audit.add_argument("--client", default="", metavar="NAME", help="only this client")
  audit.add_argument("--json", action="store_true", help="all of it as JSON")
  audit.set_defaults(run=_audit)

  prepare = commands.add_parser(
    "prepare",
    help="look a data set through: what it holds, and all that is wrong with it",
    description="Reads all records and decodes all images. Exit status: 0 usable, 1 something is"
    " wrong, 2 a user's mistake.",
  )
  prepare.add_argument("source", help="a folder with captions.jsonl, or the name of a source")
  prepare.add_argument(
    "--dir", default="", metavar="FOLDER", help="where a named source's data lies"
  )
  prepare.add_argument("--fields", default="", help='data.fields of "tfds:NAME"')
  prepare.add_argument("--jobs", type=int, default=0, help="images at a time; default: one a core")
  prepare.set_defaults(run=_prepare)

  split = commands.add_parser(
    "partition",
    help="show how a config splits its data over clients, without a run",
    description="Prints the clients' sizes and labels; writes partition.json, which another run may"
    " be given as data.partition=manifest:PATH, and partition.png.",
  )
  split.add_argument("config", help="a file with get_config(): in configs/, or a path")
  split.add_argument(
    "flags",
    nargs=argparse.REMAINDER,
    metavar="--config.FIELD=VALUE",
    help="as of launch.py; --workdir=FOLDER is where to write, default partitions/NAME",
  )
  split.set_defaults(run=_partition)

  use_cli.add_commands(commands)

  report = commands.add_parser(
    "report", help="one HTML file that shows what a run did, or several runs beside each other"
  )
  report.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder")
  report.add_argument("--out", type=Path, help="default: report.html in the first run's folder")
  report.add_argument("--no-images", action="store_true", help="leave out images of examples")
  report.set_defaults(run=_report)

  dashboard = commands.add_parser(
    "dashboard",
    help="a local web page that follows a run",
    description="Serves a page that follows a run until Ctrl-C. It reads the run's folder, and"
    " images of its data set unless --no-images, and writes nothing.",
  )
  dashboard.add_argument("folder", type=Path, metavar="RUN", help="the run's folder")
  dashboard.add_argument("--host", default="127.0.0.1", help="IPv4 address to listen on")
  dashboard.add_argument("--port", type=int, default=8050, help="default: 8050; 0: any free one")
  dashboard.add_argument(
    "--name",
    action="append",
    default=[],
    help="another name or address, without port, by which browsers may ask; may be given again",
  )
  dashboard.add_argument("--no-images", action="store_true", help="leave out images of examples")
  dashboard.set_defaults(run=_dashboard)

  keys = commands.add_parser("keys", help="make the certificates and keys of a federation")
  kinds = keys.add_subparsers(dest="kind", required=True, metavar="KIND")
  server = kinds.add_parser("server", help="the server's: ca.crt goes to every site")
  server.add_argument("hosts", nargs="*", help="names and addresses by which sites reach it")
  server.add_argument("--days", type=int, default=3650, help="until the certificates expire")
  site = kinds.add_parser("site", help="a site's: NAME.pub goes to the server")
  site.add_argument("name", help="the site's name in the federation")
  for kind in (server, site):
    kind.add_argument("--folder", type=Path, default=Path("keys"), help="default: keys")
    kind.set_defaults(run=_keys)

  argv = sys.argv[1:] if argv is None else argv
  args = parser.parse_args(argv, argparse.Namespace(again=shlex.join(["afspl", *argv])))
  try:
    return args.run(args)
  except UserError as error:
    print(f"afspl {args.command}: {error}", file=sys.stderr)
    return 2


def _score(args: argparse.Namespace) -> int:
  try:
    print(json.dumps(score_file(args.file), indent=2))
  except (OSError, ValueError) as error:
    raise UserError(str(error)) from error
  return 0


def _keys(args: argparse.Namespace) -> int:
  from afspl_jax.federation.transport import certificates, site_keys

  if args.kind == "server":
    made = certificates.make_tls_files(args.folder, args.hosts, args.days)
    print(f"give every site a copy of {made.ca}; put each site's NAME.pub into {args.folder}/sites")
    print(f"keep to this host: {made.key}; better still elsewhere: {args.folder / 'ca.key'}")
  else:
    pair = site_keys.make_site_key(args.folder, args.name)
    print(f"give the server a copy of {pair.public}; get its ca.crt and put it into {args.folder}")
    print(f"keep to this host: {pair.private}")
  return 0


def _prepare(args: argparse.Namespace) -> int:
  from afspl_jax.config.experiment import Data
  from afspl_jax.config.registry import SOURCES
  from afspl_jax.reporting.data_check import check_data_set

  if args.source.partition(":")[0] in SOURCES.names():
    data = Data(source=args.source, dir=args.dir, fields=args.fields)
  elif Path(args.source).expanduser().is_dir() and not args.dir:
    data = Data(source="folder", dir=args.source)
  else:
    raise UserError(
      "expected a folder with captions.jsonl, or one of"
      f" {', '.join(SOURCES.names())} with --dir=FOLDER; got {args.source!r}"
    )
  report = check_data_set(data, args.jobs)
  print(report.text)
  return 0 if report.usable else 1


def _partition(args: argparse.Namespace) -> int:
  from afspl_jax.config.flags import parse
  from afspl_jax.reporting.partition_preview import preview_partition

  where = f"--workdir=partitions/{Path(args.config).stem}"  # a later flag wins
  launch = parse(["afspl partition", f"--config={args.config}", where, *args.flags], CONFIGS)
  print(preview_partition(launch.config, launch.workdir))
  return 0


def _status(args: argparse.Namespace) -> int:
  from afspl_jax.reporting.status import describe_run

  print(describe_run(args.folder))
  return 0


def _audit(args: argparse.Namespace) -> int:
  from afspl_jax.reporting.audit import audit_run
  from afspl_jax.reporting.audit_table import format_audit

  found = audit_run(args.folder, args.client)
  print(json.dumps(found, indent=2, ensure_ascii=False) if args.json else format_audit(found))
  return 0 if found["closed"] else 1


def _report(args: argparse.Namespace) -> int:
  with _installed("report"):
    from afspl_jax.reporting.html.page import write_report

  print(f"report: {write_report(args.runs, args.out, images=not args.no_images)}")
  return 0


def _dashboard(args: argparse.Namespace) -> int:
  with _installed("report"):
    from afspl_jax.reporting.dashboard import serve_dashboard

  serve_dashboard(args.folder, args.host, args.port, args.name, images=not args.no_images)
  return 0


@contextlib.contextmanager
def _installed(extra: str) -> Iterator[None]:
  """Says what to install where an import fails for want of one of an extra's libraries."""
  try:
    yield
  except ModuleNotFoundError as error:
    if error.name in ("afspl_jax", None) or error.name.startswith("afspl_jax."):
      raise
    raise UserError(
      f"expected {error.name}, which comes with an extra; got none."
      f" Install it: pip install 'afspl-jax[{extra}]'"
    ) from error


def _ablate(args: argparse.Namespace) -> int:
  # `score` is to start at once, and needs none of these.
  from afspl_jax.config.files import find, load
  from afspl_jax.config.study import Study
  from afspl_jax.runs.study.ablate import run_study
  from afspl_jax.runs.study.plots import write_plot
  from afspl_jax.runs.study.results import read_results, write_results
  from afspl_jax.runs.study.tables import write_tables

  path = find(args.config, CONFIGS)
  study = load(path, "get_study", Study)
  workdir = args.workdir or Path("runs") / path.stem
  command = shlex.join(["afspl", "ablate", args.config, f"--workdir={workdir}"])
  if args.table and not workdir.is_dir():
    raise UserError(f"{workdir}: expected a study's folder; got none. Run: {command}")
  failed, interrupted = [], False
  try:
    if not args.table:
      failed = run_study(study, workdir, args.jobs, args.only)
  except KeyboardInterrupt:
    interrupted = True
  results = read_results(study, workdir)
  write_tables(study, results, command, workdir / "table.md")
  write_results(results, workdir / "results.json")
  write_plot(study, results, workdir / "bytes.png")
  print(f"tables: {workdir / 'table.md'}")
  if interrupted:
    print(f"interrupted: finished rounds are kept. Go on with: {args.again}", file=sys.stderr)
    return 130
  if failed:
    print(f"{len(failed)} runs failed: {workdir / 'failures.jsonl'}", file=sys.stderr)
  return 1 if failed else 0


if __name__ == "__main__":
  sys.exit(main())
