"""The server's half of the federation: the ServerApp, and a whole run in this process."""

import dataclasses
from collections.abc import Callable

from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp

from afspl_jax.federation.client.client_app import SiteApp
from afspl_jax.federation.contracts import Clipping, Masking, Trainer
from afspl_jax.federation.protocol.disclosure_log import DisclosureLog, LoggedApp
from afspl_jax.federation.protocol.image_statistics import ImageStatistics
from afspl_jax.federation.server.progress import SILENT, Progress
from afspl_jax.federation.server.rounds import Plan, newest_state, run_rounds, scored_params
from afspl_jax.federation.transport.local_grid import LocalGrid
from afspl_jax.types import Params


def make_server_app(plan: Plan, num_sites: int, progress: Progress = SILENT) -> ServerApp:
  """The ServerApp that runs the plan, for any Grid; the result is in the run's folder.

  Args:
    plan: what to do.
    num_sites: sites that are waited for at the start.
    progress: receives what happens.
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
  clipping: Clipping | None = None,
  masking: Masking | None = None,
  progress: Progress = SILENT,
  statistics: Callable[[int], ImageStatistics] | None = None,
) -> Params:
  """Runs the whole federation in this process, from the newest checkpoint on.

  Args:
    plan: what to do.
    trainer: trains every client.
    num_clients: sites in the federation.
    clipping: bounds the clients' updates.
    masking: hides them in their sum.
    progress: receives what happens.
    statistics: of a client's images, where sites send them.

  Returns:
    The params to score after the last round, as they are on disk, with NumPy leaves.

  Raises:
    RoundFailed: too few valid replies in a round.
  """
  record = DisclosureLog(plan.folder.path, plan.params, sync=False)  # nothing leaves this process
  app = SiteApp(trainer, plan.params, plan.terms, clipping, masking, statistics)
  grid = LocalGrid(LoggedApp(app, record, trainer.site), num_clients)
  context = Context(grid.run.run_id, 1, node_config={}, state=RecordDict(), run_config={})
  # All clients are here from the start.
  at_once = dataclasses.replace(plan, fed=dataclasses.replace(plan.fed, wait=0.0))
  make_server_app(at_once, num_clients, progress)(grid, context)
  return scored_params(newest_state(plan)[1])
