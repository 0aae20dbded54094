"""Runs an experiment: `python launch.py --config=shapes.py --config.fed.rounds=5 --workdir=runs/x`.

The same as `afspl run`, from a checkout; `--help` lists the flags.
"""

import sys

from afspl_jax.runs.commands.run import launch

if __name__ == "__main__":
  sys.exit(launch("launch.py", [sys.executable, sys.argv[0]], sys.argv[1:]))
