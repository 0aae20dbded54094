"""The server's half of the federation: the ServerApp, and a whole run in this process."""

import dataclasses

from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp

from afspl_jax.federation.client.client_app import SiteApp
from afspl_jax.federation.contracts import Guard, Masks, Trainer
from afspl_jax.federation.protocol.disclosure_log import Recorded, WireRecord
from afspl_jax.federation.server.rounds import (
  SILENT,
  Plan,
  Progress,
  newest_state,
  run_rounds,
  scored_params,
)
from afspl_jax.federation.transport.local_grid import LocalGrid
from afspl_jax.types import Params


def make_server_app(plan: Plan, num_sites: int, progress: Progress) -> ServerApp:
  """The ServerApp that runs the plan, for any Grid; the result is in the run's folder.

  Args:
    plan: what to do.
    num_sites: sites that are waited for at the start.
    progress: is told what happens.
  """
  app = ServerApp()

  @app.main()
  def main(grid: Grid, context: Context) -> None:
    run_rounds(grid, plan, num_sites, progress)

  return app


def run_local(
  plan: Plan,
  trainer: Trainer,
  num_clients: int,
  guard: Guard | None = None,
  masks: Masks | None = None,
  progress: Progress = SILENT,
) -> Params:
  """Runs the whole federation in this process, from the newest checkpoint on.

  Args:
    plan: what to do.
    trainer: trains every client.
    num_clients: sites in the federation.
    guard: bounds what leaves each.
    masks: hide it in the sum of all.
    progress: is told what happens.

  Returns:
    The params to score after the last round, as they are on disk, with NumPy leaves.

  Raises:
    RoundFailed: too few valid replies in a round.
  """
  record = WireRecord(plan.folder.path, plan.params, sync=False)  # nothing leaves this process
  app = SiteApp(trainer, plan.params, plan.terms, guard, masks)
  grid = LocalGrid(Recorded(app, record, trainer.site), num_clients)
  context = Context(grid.run.run_id, 1, node_config={}, state=RecordDict(), run_config={})
  # All are here at once or never.
  at_once = dataclasses.replace(plan, fed=dataclasses.replace(plan.fed, wait=0.0))
  make_server_app(at_once, num_clients, progress)(grid, context)
  return scored_params(newest_state(plan)[1])
