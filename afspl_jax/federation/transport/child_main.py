"""Runs a command in a child process that ends when its parent does, be the parent killed.

  python -m afspl_jax.federation.transport.child_main COMMAND [ARGUMENT]...

COMMAND is a console script of an installed package, or MODULE:FUNCTION of a function without
arguments. Stdin is a pipe of which the parent holds the other end and writes nothing: it closes
when the parent ends, in whatever way. Imports nothing of its own that is slow.
"""

import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from importlib.metadata import entry_points

_GRACE = 5.0  # seconds to end in good order: a SuperNode takes its leave of the SuperLink


def main() -> None:
  """Runs the command that `sys.argv` names."""
  threading.Thread(target=_follow_parent, daemon=True).start()
  del sys.argv[0]
  _command(sys.argv[0])()


def _command(name: str) -> Callable[[], object]:
  module, _, function = name.partition(":")
  if function:
    return getattr(importlib.import_module(module), function)
  (script,) = entry_points(group="console_scripts", name=name)
  return script.load()


def _follow_parent() -> None:
  while os.read(0, 1):
    pass
  os.kill(os.getpid(), signal.SIGTERM)
  time.sleep(_GRACE)
  os._exit(1)


if __name__ == "__main__":
  main()
