"""Flower's own way in: `flwr run` with this repository as the app.

For those who run Flower's SuperLink and SuperNodes already: `server_app` and `client_app` are the
same as those of `launch.py --role`. Every host needs the package installed; what `flwr run` sends
holds no code. Flower starts a process for every message, so a site loads its models in every round,
and keeps no secret from one message to the next: `launch.py --role=client` loads them once, and is
the way to aggregate securely.

The run's config, in pyproject.toml or given with `flwr run -c`, has `config` (a file in configs/,
or a path on every host), `overrides` ("fed.rounds=5 data.num_clients=3") and `workdir` (a folder on
every host, relative to where its SuperLink or SuperNode was started). A SuperNode's config says
which site it is: `partition-id=0` is the first of those that the data is split over; with
`data="FOLDER" site="NAME"` besides, it is a site with data of its own.
"""

import logging
import shlex

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from afspl_jax.config.experiment import to_dict
from afspl_jax.config.files import CONFIGS
from afspl_jax.config.flags import Launch, parse_flags
from afspl_jax.errors import UserError
from afspl_jax.federation.client.client_app import SiteApp
from afspl_jax.federation.client.client_store import ClientStore
from afspl_jax.federation.contracts import SiteError
from afspl_jax.federation.privacy.update_clipping import clipping_of
from afspl_jax.federation.protocol.disclosure_log import DisclosureLog, LoggedApp
from afspl_jax.federation.server.rounds import run_rounds
from afspl_jax.runs import run
from afspl_jax.runs.prepare import (
  SERVER_SPLITS,
  SITE_SPLITS,
  enable_compilation_cache,
  find_inputs,
  prepare_setup,
)
from afspl_jax.runs.validate_networked import validate_networked
from afspl_jax.storage.run_folder import RunFolder

_LOG = logging.getLogger(__name__)

server_app = ServerApp()


@server_app.main()
def _main(grid: Grid, context: Context) -> None:
  launch = _launch(context)
  sites = launch.config.data.num_clients
  run.run_experiment(
    launch.config,
    launch.workdir,
    run_plan=lambda setup, plan, progress: run_rounds(grid, plan, sites, progress),
    splits=SERVER_SPLITS,
  )


class _Site(ClientApp):
  """Assembles the app for one message, and lets it answer."""

  def __call__(self, message: Message, context: Context) -> Message:
    try:
      return self._answer(message, context)
    except Exception as error:  # noqa: BLE001 - it is logged; its text, with paths, would travel
      _LOG.exception("a message went unanswered")
      kind = type(error).__name__
      raise SiteError(f"{kind} before the site could answer; its own log has the rest") from None

  def _answer(self, message: Message, context: Context) -> Message:
    node = context.node_config
    roles = [f"--{name}={node[name]}" for name in ("site", "data") if name in node]
    launch = _launch(context, "--role=client", "--superlink=its:1", "--site=a-part", *roles)
    config, site = launch.config, launch.site if launch.own_data else ""
    enable_compilation_cache()
    # Nodes of one host may share a workdir: each has a folder of its own.
    folder = launch.workdir / "nodes" / str(context.node_id)
    with RunFolder.open(folder, to_dict(config)) as opened:
      store = ClientStore(opened.path / "clients")
      setup = prepare_setup(config, find_inputs(config, SITE_SPLITS), store, site=site)
      opened.require_same(setup.facts)
      assert setup.trainer is not None, "there is data to train on"
      clipping = clipping_of(config, opened.path / "clients")
      statistics = setup.statistics
      app = SiteApp(setup.trainer, setup.shared, setup.terms, clipping, statistics=statistics)
      record = DisclosureLog(opened.path, setup.shared, sync=True)
      return LoggedApp(app, record, setup.trainer.site)(message, context)


client_app = _Site()


def _launch(context: Context, *flags: str) -> Launch:
  given = context.run_config
  overrides = [f"--config.{text}" for text in shlex.split(str(given["overrides"]))]
  words = [f"--config={given['config']}", *overrides, f"--workdir={given['workdir']}", *flags]
  launch = parse_flags(["flwr run", *words], CONFIGS)
  validate_networked(launch.config, "flwr run")
  if launch.config.secure.aggregation:
    raise UserError(
      "secure.aggregation: expected False with `flwr run`, which starts a process for every"
      " message, while a site's secrets of a round are in memory alone; got True. Start launch.py"
    )
  return launch
