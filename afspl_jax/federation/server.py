"""The server's half of the federation: the ServerApp, and a whole run in this process."""

import time

from flwr.app import ConfigRecord, Context, RecordDict
from flwr.serverapp import Grid, ServerApp

from afspl_jax.federation import wire
from afspl_jax.federation.client import CohortTrainer, Trainer, make_client_app
from afspl_jax.federation.local_grid import LocalGrid
from afspl_jax.federation.rounds import Plan, ask, newest_state, run_rounds, scored_params
from afspl_jax.types import Params


def make_server_app(plan: Plan, num_clients: int, wait: float = 0.0) -> ServerApp:
  """The ServerApp that runs the plan; the same for local and networked runs.

  Args:
    plan: what to do. Its result is in the run's folder.
    num_clients: sites that must be there before the first round.
    wait: seconds to wait for them.

  Returns:
    An app for any Grid.
  """
  app = ServerApp()

  @app.main()
  def main(grid: Grid, context: Context) -> None:
    nodes = meet(grid, wire.structure_digest(plan.params), num_clients, wait)
    run_rounds(grid, nodes, plan)

  return app


def run_local(plan: Plan, trainer: Trainer, num_clients: int) -> Params:
  """Runs the whole federation in this process, from the newest checkpoint on.

  Args:
    plan: what to do.
    trainer: trains every client.
    num_clients: sites in the federation.

  Returns:
    The params to score after the last round, as they are on disk, with NumPy leaves.

  Raises:
    RoundFailed: too few valid replies in a round.
  """
  announce = trainer.expect if isinstance(trainer, CohortTrainer) else lambda clients: None
  grid = LocalGrid(make_client_app(trainer, plan.params), num_clients, announce)
  context = Context(grid.run.run_id, 1, node_config={}, state=RecordDict(), run_config={})
  make_server_app(plan, num_clients)(grid, context)
  return scored_params(newest_state(plan)[1])


def meet(grid: Grid, structure: str, num_clients: int, wait: float = 0.0) -> dict[str, int]:
  """Waits for the sites and asks their names: node ids are random, names are not.

  Returns:
    Node id of each site, sorted by name.

  Raises:
    RuntimeError: sites are missing, two have one name, or one has another model.
  """
  deadline = time.monotonic() + wait
  while len(ids := sorted(grid.get_node_ids())) < num_clients and time.monotonic() < deadline:
    time.sleep(min(1.0, wait))
  if len(ids) < num_clients:
    raise RuntimeError(f"expected {num_clients} sites within {wait:g} s; got {len(ids)}")
  hello = RecordDict({wire.CONFIG: ConfigRecord({wire.STRUCTURE: structure})})
  nodes: dict[str, int] = {}
  for name, (_, reply) in ask(grid, {str(i): i for i in ids}, wire.HELLO, hello, 0).items():
    if reply is None or reply.has_error():
      why = "no reply" if reply is None else reply.error.reason
      raise RuntimeError(f"node {name}: expected it to say its name; got: {why}")
    answer = reply.content.config_records.get(wire.CONFIG, {})
    site = answer.get(wire.SITE)
    if not isinstance(site, str) or site in nodes:
      raise RuntimeError(f"node {name}: expected a site name of its own; got {site!r}")
    if answer.get(wire.STRUCTURE) != structure:
      raise RuntimeError(
        f"{site}: expected params of structure {structure}; got {answer.get(wire.STRUCTURE)}. "
        "Run the same version and config there"
      )
    nodes[site] = int(name)
  return dict(sorted(nodes.items()))
