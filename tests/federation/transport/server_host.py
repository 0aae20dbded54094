"""The server's host, as a program of its own, that sends itself SIGKILL at a moment of a round.

With the moment "long" it runs until it is ended.
"""

import json
import os
import signal
import sys
from pathlib import Path

from afspl_jax.config.experiment import Fed
from afspl_jax.federation import strategies
from afspl_jax.federation.server.rounds import Plan, run_rounds
from afspl_jax.federation.transport.certificates import read_server_keys
from afspl_jax.federation.transport.executors import open_grid
from afspl_jax.federation.transport.superlink import SuperLink
from afspl_jax.storage.checkpoints import Checkpoints
from afspl_jax.storage.run_folder import RunFolder
from tests.federation.least_squares import evaluate, init_params
from tests.federation.watching import Watching

ROUNDS, SITES = 8, 3
# One in each phase of a round, in the order in which a round passes them.
MOMENTS = ("select", "send", "collect", "aggregate", "evaluate", "write", "checkpoint")


def before(what, moment, now):
  """The same function, which dies before its work if this is the moment."""

  def wrapped(*args, **kwargs):
    if moment == now:
      os.kill(os.getpid(), signal.SIGKILL)
    return what(*args, **kwargs)

  return wrapped


def main(base, port, moment, fatal_round):
  with (
    RunFolder.open(base / "run", {}) as folder,
    SuperLink(
      base / "superlink", "127.0.0.1", port, read_server_keys(base / "keys"), print
    ) as superlink,
  ):
    for key in sorted((base / "keys").glob("site_*.pub")):
      superlink.register(key)
    checkpoints = Checkpoints(folder.path / "checkpoints")
    strategy = strategies.get("fedavgm")  # it has a state that must not be lost
    plan = Plan(
      params=init_params(),
      strategy=strategy,
      fed=Fed(rounds=1000 if moment == "long" else ROUNDS, clients_per_round=SITES, deadline=15.0),
      seed=0,
      folder=folder,
      checkpoints=checkpoints,
      evaluate=evaluate,
    )
    with open_grid(superlink) as grid:

      def arm(report):
        if report.round != fatal_round - 1:
          return
        grid.get_node_ids = before(grid.get_node_ids, moment, "select")
        grid.push_messages = before(grid.push_messages, moment, "send")
        grid.pull_messages = before(grid.pull_messages, moment, "collect")
        object.__setattr__(strategy, "aggregate", before(strategy.aggregate, moment, "aggregate"))
        object.__setattr__(plan, "evaluate", before(evaluate, moment, "evaluate"))
        folder.append_clients = before(folder.append_clients, moment, "write")
        checkpoints.save = before(checkpoints.save, moment, "checkpoint")

      watching = Watching(arm)
      watching.waiting = watching.site_changed = print
      params = run_rounds(grid, plan, SITES, watching)
  leaves = {name: leaf.tobytes().hex() for name, leaf in params["mapper"].items()}
  (base / "result.json").write_text(json.dumps(leaves))


if __name__ == "__main__":
  main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
