"""Runs an experiment: `python launch.py --config=shapes.py --config.fed.rounds=5 --workdir=runs/x`.

`--config` names a file in configs/, or any path to one; `--config.FIELD=VALUE` overrides a field.
The same command again goes on after the last finished round. Exit status: 0 success, 2 a user's
mistake in one clear message, 1 a fault, 130 interrupted.
"""

import os
import shlex
import sys
from pathlib import Path

CONFIGS = Path(__file__).parent / "configs"


def main(argv: list[str]) -> int:
  """Parses flags, runs, prints the scores, and returns the exit status."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no torch is meant
  from afspl_jax.errors import UserError
  from afspl_jax.flags import parse

  try:
    config, workdir = parse(argv, CONFIGS)
    from afspl_jax import run  # takes seconds, which a mistyped flag need not wait for

    scores = run.federate(config, workdir)
  except UserError as error:
    print(f"launch.py: {error}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    again = shlex.join([sys.executable, *argv])
    print(f"\ninterrupted: finished rounds are kept. Go on with: {again}", file=sys.stderr)
    return 130
  for split, title in (("test", "test split"), ("test_personal", "with each site's own prompt")):
    if split in scores:
      line = scores[split]
      named = [f"{name} {line[name]:.3f}" for name in run.HEADLINE if name in line]
      print(f"{title}, round {line['round']}: {', '.join(named)}")
  print(f"run folder: {workdir}")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv))
