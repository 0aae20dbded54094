"""The command that runs a study: ablate."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from afspl_jax.config.files import CONFIGS
from afspl_jax.errors import UserError
from afspl_jax.runs.commands.groups import CommandGroup


def add_commands(parsers: Any) -> CommandGroup:
  """Adds the command."""
  group = CommandGroup(parsers, "study", "afspl ablate ablation.py --jobs=2")
  ablate = group.add(
    "ablate",
    _ablate,
    "run a study of methods, settings and seeds, and tabulate it",
    "Runs what a study still lacks, then writes table.md, results.json and bytes.png,"
    " and gains.png if the study has a variant in which sites train alone."
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
  ablate.add_argument("--table", action="store_true", help="run nothing; only tabulate")
  return group


def _ablate(args: argparse.Namespace) -> int:
  # Other commands start at once, and need none of these.
  from afspl_jax.config.files import find_config, load_config
  from afspl_jax.config.study import Study
  from afspl_jax.runs.study.ablate import run_study
  from afspl_jax.runs.study.gain_plot import write_gain_plot
  from afspl_jax.runs.study.gains import PICTURE
  from afspl_jax.runs.study.plots import write_plot
  from afspl_jax.runs.study.results import read_results, write_results
  from afspl_jax.runs.study.tables import write_tables

  path = find_config(args.config, CONFIGS)
  study = load_config(path, "get_study", Study)
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
  write_gain_plot(study, results, workdir / PICTURE)
  print(f"tables: {workdir / 'table.md'}")
  if interrupted:
    print(f"interrupted: finished rounds are kept. Go on with: {args.again}", file=sys.stderr)
    return 130
  if failed:
    print(f"{len(failed)} runs failed: {workdir / 'failures.jsonl'}", file=sys.stderr)
  return 1 if failed else 0
