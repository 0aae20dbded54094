"""A program: the server's host, which sends itself SIGKILL in one phase of a round.

With the phase "long" it runs until it is stopped.
"""

import json
import os
import signal
import sys
from pathlib import Path

from afspl_jax.config.experiment import Fed
from afspl_jax.federation import strategies
from afspl_jax.federation.server.rounds import Plan, run_rounds
from afspl_jax.federation.transport.certificates import read_tls_files
from afspl_jax.federation.transport.server_executor import open_grid
from afspl_jax.federation.transport.superlink import SuperLink
from afspl_jax.storage.checkpoints import Checkpoints
from afspl_jax.storage.run_folder import RunFolder
from tests.federation.least_squares import evaluate, init_params
from tests.federation.watching import Watching

ROUNDS, SITES = 8, 3
# In the order of a round.
PHASES = ("select", "send", "collect", "aggregate", "evaluate", "write", "checkpoint")


def before(what, phase, now):
  """Returns the function, or one that kills the process first if this is the phase."""

  def wrapped(*args, **kwargs):
    if phase == now:
      os.kill(os.getpid(), signal.SIGKILL)
    return what(*args, **kwargs)

  return wrapped


def main(base, port, phase, fatal_round):
  with (
    RunFolder.open(base / "run", {}) as folder,
    SuperLink(
      base / "superlink", "127.0.0.1", port, read_tls_files(base / "keys"), print
    ) as superlink,
  ):
    for key in sorted((base / "keys").glob("site_*.pub")):
      superlink.register(key)
    checkpoints = Checkpoints(folder.path / "checkpoints")
    strategy = strategies.get_strategy("fedavgm")  # its state must survive
    # A killed site is noticed at the deadline; no other round reaches it.
    rounds, deadline = (1000, 60.0) if phase == "long" else (ROUNDS, 600.0)
    plan = Plan(
      params=init_params(),
      strategy=strategy,
      fed=Fed(rounds=rounds, clients_per_round=SITES, deadline=deadline),
      seed=0,
      folder=folder,
      checkpoints=checkpoints,
      evaluate=evaluate,
    )
    with open_grid(superlink) as grid:

      def arm(report):
        if report.round != fatal_round - 1:
          return
        grid.get_node_ids = before(grid.get_node_ids, phase, "select")
        grid.push_messages = before(grid.push_messages, phase, "send")
        grid.pull_messages = before(grid.pull_messages, phase, "collect")
        object.__setattr__(strategy, "aggregate", before(strategy.aggregate, phase, "aggregate"))
        object.__setattr__(plan, "evaluate", before(evaluate, phase, "evaluate"))
        folder.append_clients = before(folder.append_clients, phase, "write")
        checkpoints.save = before(checkpoints.save, phase, "checkpoint")

      watching = Watching(arm)
      watching.waiting = watching.site_changed = print
      params = run_rounds(grid, plan, SITES, watching)
  leaves = {name: leaf.tobytes().hex() for name, leaf in params["mapper"].items()}
  (base / "result.json").write_text(json.dumps(leaves))


if __name__ == "__main__":
  main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
