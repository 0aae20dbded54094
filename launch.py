"""Runs an experiment: `python launch.py --config=shapes.py --config.fed.rounds=5 --workdir=runs/x`.

`--config` names a file in configs/, or any path to one; `--config.FIELD=VALUE` overrides a field;
`--role` says whether the clients are in this process or on other hosts. The same command again goes
on after the last finished round. Exit status: 0 success, 2 a user's mistake in one clear message,
1 a fault, 130 interrupted, 143 told to end.
"""

import os
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from afspl_jax.config.flags import Launch

CONFIGS = Path(__file__).parent / "configs"


def main(argv: list[str]) -> int:
  """Parses flags, runs, prints the scores, and returns the exit status."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no torch is meant
  from afspl_jax.config.flags import parse
  from afspl_jax.errors import Stopped, UserError

  again = shlex.join([sys.executable, *argv])
  signal.signal(signal.SIGTERM, _end)
  try:
    _launch(parse(argv, CONFIGS))
  except UserError as error:
    print(f"launch.py: {error}", file=sys.stderr)
    return 2
  except Stopped as error:
    print(f"launch.py: {error}", file=sys.stderr)
    return 1
  except KeyboardInterrupt as error:
    ended = isinstance(error, _Ended)
    how = "told to end" if ended else "interrupted"
    print(f"\n{how}: finished rounds are kept. Go on with: {again}", file=sys.stderr)
    return 143 if ended else 130
  return 0


def _launch(launch: "Launch") -> None:
  """Does what the command line asks for."""
  # What takes seconds to import is imported by who needs it.
  from afspl_jax.runs import run

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


class _Ended(KeyboardInterrupt):
  """SIGTERM: the host is to be shut down."""


def _end(number: int, frame: object) -> None:
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  raise _Ended


if __name__ == "__main__":
  sys.exit(main(sys.argv))
