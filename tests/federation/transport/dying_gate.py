"""The SuperLink's program, which kills itself when it has handed out a message, if it is told to.

It is told by a file of that name in its working folder, which it removes first.
"""

import os
import signal
from pathlib import Path

from afspl_jax.federation.transport import gate
from afspl_jax.federation.transport.redelivery import RedeliveringState

WHEN_HANDED_OUT = "die when handed out"


def main():
  """Runs gate.py's program."""
  hand_out = RedeliveringState.get_message_ins

  def and_die(self, *args, **kwargs):
    messages = hand_out(self, *args, **kwargs)
    if messages and Path(WHEN_HANDED_OUT).exists():
      Path(WHEN_HANDED_OUT).unlink()
      os.kill(os.getpid(), signal.SIGKILL)
    return messages

  RedeliveringState.get_message_ins = and_die
  gate.main()
