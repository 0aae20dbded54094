"""Runs an experiment: `afspl run`, and `python launch.py` in a checkout.

Exit status: 0 success, 2 a user's mistake in one clear message, 1 the run cannot continue, 130
interrupted, 143 terminated.
"""

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from afspl_jax.runs.commands.groups import CommandGroup

if TYPE_CHECKING:
  from afspl_jax.config.flags import Launch


def add_commands(parsers: Any) -> CommandGroup:
  """Adds the command."""
  group = CommandGroup(
    parsers, "run", "afspl run --config=shapes.py --config.fed.rounds=5 --workdir=runs/x"
  )
  # Its flags are not argparse's: the program calls `launch` before it parses the command line.
  group.add("run", _run, "run an experiment, or continue it: in one process or over a network")
  return group


def _run(args: argparse.Namespace) -> int:
  return launch("afspl run", ["afspl", "run"], [])


def launch(name: str, command: Sequence[str], arguments: Sequence[str]) -> int:
  """Parses flags, runs an experiment, prints the scores, and returns the exit status.

  Args:
    name: of the program, as help and errors show it.
    command: starts the program again, without its flags.
    arguments: the flags.
  """
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # there is no torch, on purpose
  from afspl_jax.config.files import CONFIGS
  from afspl_jax.config.flags import parse_flags
  from afspl_jax.errors import Stopped, UserError
  from afspl_jax.storage.disk_errors import full_disk_in_one_line

  again = shlex.join([*command, *arguments])
  signal.signal(signal.SIGTERM, _terminate)
  try:
    launched = parse_flags([name, *arguments], CONFIGS)
    if launched.offline:  # also of the processes that this one starts
      os.environ["HF_HUB_OFFLINE"] = "1"
    with full_disk_in_one_line(launched.workdir):
      _launch(launched)
  except UserError as error:
    print(f"{name}: {error}", file=sys.stderr)
    return 2
  except Stopped as error:
    print(f"{name}: {error}", file=sys.stderr)
    return 1
  except KeyboardInterrupt as error:
    ended = isinstance(error, _Terminated)
    how = "terminated" if ended else "interrupted"
    print(f"\n{how}: finished rounds are kept. Go on with: {again}", file=sys.stderr)
    return 143 if ended else 130
  return 0


def _launch(launch: "Launch") -> None:
  """Does what the command line asks for."""
  # These imports take seconds: not before the flags are known to be right.
  from afspl_jax.reporting.gains import describe_gains, find_gains
  from afspl_jax.runs import run
  from afspl_jax.storage.run_lines import read_lines

  if launch.role == "local":
    scores = run.run_experiment(launch.config, launch.workdir)
  else:
    from afspl_jax.runs import hosts

    if launch.role == "client":
      hosts.join_federation(launch)
      return
    scores = hosts.federate(launch)
  titles = {"test": "test split", "test_personal": "test split, personalised models"}
  for split, title in titles.items():
    if split in scores:
      line = scores[split]
      named = [f"{name} {line[name]:.3f}" for name in run.HEADLINE if name in line]
      print(f"{title}, round {line['round']}: {', '.join(named)}")
  print(f"run folder: {launch.workdir}")
  gains = find_gains(scores, read_lines(launch.workdir / "sites.jsonl"))
  if gains:
    print(describe_gains(gains))


class _Terminated(KeyboardInterrupt):
  """SIGTERM: the host is shutting down."""


def _terminate(number: int, frame: object) -> None:
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  raise _Terminated
