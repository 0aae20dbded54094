"""Runs a command in a child process that ends when its parent ends, even if that is killed.

  python -m afspl_jax.federation.transport.child_main COMMAND [ARGUMENT]...

COMMAND is a console script of an installed package, or MODULE:FUNCTION of a function without
arguments. Stdin is a pipe to the parent (parent_process.py). This module imports nothing slow.
"""

import importlib
import sys
from collections.abc import Callable
from importlib.metadata import entry_points

from afspl_jax.federation.transport.parent_process import end_with_parent

_GRACE = 5.0  # seconds: a SuperNode signs off from the SuperLink before it ends


def main() -> None:
  """Runs the command that `sys.argv` names."""
  end_with_parent(_GRACE)
  del sys.argv[0]
  _command(sys.argv[0])()


def _command(name: str) -> Callable[[], object]:
  module, _, function = name.partition(":")
  if function:
    return getattr(importlib.import_module(module), function)
  (script,) = entry_points(group="console_scripts", name=name)
  return script.load()


if __name__ == "__main__":
  main()
