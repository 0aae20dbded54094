"""Commands that look at runs and data sets: status, report, dashboard, prepare, partition."""

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from afspl_jax.config.files import CONFIGS
from afspl_jax.errors import UserError
from afspl_jax.runs.commands.groups import CommandGroup


def add_commands(parsers: Any) -> CommandGroup:
  """Adds the commands."""
  group = CommandGroup(parsers, "look", "afspl report runs/shapes")
  status = group.add("status", _status, "show the rounds, scores and sites of a run")
  status.add_argument("folder", type=Path, metavar="RUN", help="the run's folder")

  report = group.add("report", _report, "write one HTML file about a run, or about several runs")
  report.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder")
  report.add_argument("--out", type=Path, help="default: report.html in the first run's folder")
  report.add_argument("--no-images", action="store_true", help="leave out images of examples")

  dashboard = group.add(
    "dashboard",
    _dashboard,
    "serve a local web page that follows a run",
    "Serves a page that follows a run until Ctrl-C. It reads the run's folder, and images of its"
    " data set unless --no-images, and writes nothing.",
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
  _add_data_commands(group)
  return group


def _add_data_commands(group: CommandGroup) -> None:
  prepare = group.add(
    "prepare",
    _prepare,
    "check a data set, and list everything that is wrong with it",
    "Reads all records and decodes all images. Exit status: 0 usable, 1 something is wrong, 2 a"
    " user's mistake.",
  )
  prepare.add_argument("source", help="a folder with captions.jsonl, or the name of a source")
  prepare.add_argument(
    "--dir", default="", metavar="FOLDER", help="folder of a named source's data"
  )
  prepare.add_argument("--fields", default="", help='data.fields of "tfds:NAME"')
  prepare.add_argument(
    "--jobs", type=int, default=0, help="images at a time; default: one for each core"
  )

  split = group.add(
    "partition",
    _partition,
    "show how a config splits its data over clients, without a run",
    "Prints the clients' sizes and labels, and writes partition.json and partition.png. Another run"
    " takes that partition with data.partition=manifest:FILE.",
  )
  split.add_argument("config", help="a file with get_config(): in configs/, or a path")
  split.add_argument(
    "flags",
    nargs=argparse.REMAINDER,
    metavar="--config.FIELD=VALUE",
    help="as of `afspl run`; --workdir=FOLDER is where to write, default partitions/NAME",
  )


def _status(args: argparse.Namespace) -> int:
  from afspl_jax.reporting.status import describe_run

  print(describe_run(args.folder))
  return 0


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
  """Names the extra to install where a library is missing."""
  try:
    yield
  except ModuleNotFoundError as error:
    if error.name in ("afspl_jax", None) or error.name.startswith("afspl_jax."):
      raise
    raise UserError(
      f"expected {error.name}, which comes with an extra; got none."
      f" Install it: pip install 'afspl-jax[{extra}]'"
    ) from error


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
  from afspl_jax.config.flags import parse_flags
  from afspl_jax.reporting.partition_preview import preview_partition

  where = f"--workdir=partitions/{Path(args.config).stem}"  # a later flag wins
  launch = parse_flags(["afspl partition", f"--config={args.config}", where, *args.flags], CONFIGS)
  print(preview_partition(launch.config, launch.workdir))
  return 0
