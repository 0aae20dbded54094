"""A program: a host of sites that fail by a schedule. It runs until it is stopped."""

import sys
import time
from pathlib import Path

from flwr.clientapp import ClientApp

from afspl_jax.federation.client.client_app import SiteApp
from tests.federation.faults import FAULTS, far, flat
from tests.federation.least_squares import LeastSquares, init_params
from tests.federation.transport.site_host import host

ALL = (0, 1, 2)
HANGS, WAKES = 8, 9  # site 2 hangs from round 8 until the end of round 9
ONCE = 10  # in this round every site fails its first attempt

# How sites fail in a round, by site index: a name in FAULTS, or one that `WHY` adds.
SCHEDULE = {
  2: {1: "raises", 2: "nan"},
  3: {1: "inf", 2: "wrong size"},
  4: {1: "wrong dtype", 2: "broadcastable"},
  5: {1: "extra array", 2: "no array"},
  6: {1: "zero examples", 2: "negative examples"},
  7: {1: "absurd examples", 2: "far"},
  HANGS: {2: "hangs"},
  ONCE: dict.fromkeys(ALL, "raises"),
}
WHY = {name: why for name, (_, why) in FAULTS.items()} | {
  "far": "rejected: expected an update of L2 norm up to 10 (fed.max_update_norm); got",
  "hangs": "timeout: no reply within",
}


class Scheduled(ClientApp):
  """Answers correctly except where the schedule says otherwise."""

  def __init__(self, wake: Path):
    super().__init__()
    self.honest, self.wake = SiteApp(LeastSquares(), init_params()), wake
    self.failed_once: set[int] = set()

  def __call__(self, message, context):
    reply = self.honest(message, context)
    if message.metadata.message_type != "train":
      return reply
    round, client = message.content["config"]["round"], context.node_config["partition-id"]
    fault = SCHEDULE.get(round, {}).get(client)
    if fault is None or (round == ONCE and client in self.failed_once):
      return reply
    if round == ONCE:
      self.failed_once.add(client)
    if fault == "hangs":
      while not self.wake.exists():
        time.sleep(0.1)
      return reply
    spoil = flat(far) if fault == "far" else FAULTS[fault][0]
    return spoil(reply) or reply


if __name__ == "__main__":
  base = Path(sys.argv[2])
  host(Scheduled(base / "wake"), sys.argv[1], base, sys.argv[3:])
