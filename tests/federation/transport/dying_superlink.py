"""The SuperLink's program, which kills itself after handing out a message if a file asks for it.

The file is in its working folder, and is deleted first.
"""

import os
import signal
from pathlib import Path

from afspl_jax.federation.transport import access_control
from afspl_jax.federation.transport.redelivery import RedeliveringState

DIE_FILE = "die when handed out"


def main():
  """Runs the program of access_control.py."""
  hand_out = RedeliveringState.get_message_ins

  def and_maybe_die(self, *args, **kwargs):
    messages = hand_out(self, *args, **kwargs)
    if messages and Path(DIE_FILE).exists():
      Path(DIE_FILE).unlink()
      os.kill(os.getpid(), signal.SIGKILL)
    return messages

  RedeliveringState.get_message_ins = and_maybe_die
  access_control.main()
