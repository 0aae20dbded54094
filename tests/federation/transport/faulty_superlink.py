"""The SuperLink's program with two faults, which files in its working folder ask for.

- `die when handed out`: it kills itself after handing out a message; the file is deleted first.
- `hold arrays`: it does not hand out the arrays of messages while the file exists; `arrays held`
  then exists as soon as a site has asked for some.
"""

import asyncio
import os
import signal
from pathlib import Path

from afspl_jax.federation.transport import access_control
from afspl_jax.federation.transport.redelivery import RedeliveringState

DIE_FILE = "die when handed out"
HOLD_FILE, HELD_FILE = "hold arrays", "arrays held"


class Holding(access_control.AccessControl):
  """Holds back requests for the arrays of a message."""

  async def __call__(self, scope, receive, send):
    while scope.get("path") == "/v1/fleet/pull-object" and Path(HOLD_FILE).exists():
      Path(HELD_FILE).touch()
      await asyncio.sleep(0.01)
    await super().__call__(scope, receive, send)


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
  access_control.AccessControl = Holding
  access_control.main()
