"""A federation over a network: the server's command, a site's command, and both on one host.

The server's command starts Flower's SuperLink and runs the round loop. A site's command starts
Flower's SuperNode, loads the backbones, compiles the training step once, and answers the messages
that the SuperNode fetches. Both execute only what is installed on their host, and nothing that
arrives over the network.
"""

import multiprocessing
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tqdm import tqdm

from afspl_jax.config.experiment import Experiment, to_dict
from afspl_jax.config.flags import Launch
from afspl_jax.data.partition import partition
from afspl_jax.data.sources import open_source
from afspl_jax.errors import UserError
from afspl_jax.federation.client.client_app import SiteApp
from afspl_jax.federation.client.client_store import ClientStore
from afspl_jax.federation.contracts import Masking
from afspl_jax.federation.privacy.update_clipping import clipping_of
from afspl_jax.federation.protocol.disclosure_log import DisclosureLog, LoggedApp
from afspl_jax.federation.secure.site import masking_of
from afspl_jax.federation.server.progress import Progress
from afspl_jax.federation.server.rounds import Plan, run_rounds
from afspl_jax.federation.transport import certificates, site_keys
from afspl_jax.federation.transport.connection import free_port
from afspl_jax.federation.transport.parent_process import end_with_parent
from afspl_jax.federation.transport.proxies import check_proxies
from afspl_jax.federation.transport.server_executor import RunLost, open_grid
from afspl_jax.federation.transport.site_executor import answer_messages
from afspl_jax.federation.transport.superlink import SuperLink
from afspl_jax.federation.transport.supernode import Credentials, SuperNode
from afspl_jax.runs import run
from afspl_jax.runs.prepare import (
  SERVER_SPLITS,
  SITE_SPLITS,
  Setup,
  enable_compilation_cache,
  find_inputs,
  prepare_setup,
)
from afspl_jax.runs.site_identity import site_identity
from afspl_jax.runs.validate import validate
from afspl_jax.runs.validate_networked import validate_networked, without_baselines
from afspl_jax.storage.run_folder import RunFolder
from afspl_jax.types import Params

Notify = Callable[[str], None]  # gets each message for the user


def federate(launch: Launch, notify: Notify = tqdm.write) -> dict[str, dict[str, Any]]:
  """Runs the remaining rounds of an experiment as its server, and scores the final prompter.

  Args:
    launch: the command line. With the role "server" the sites are on other hosts. With "local-net"
      they are on this host, in one process with one copy of the models, over TLS and with keys.
    notify: gets each message for the user.

  Returns:
    The lines of metrics.jsonl about the test split, by their name in it.

  Raises:
    UserError: a mistake in the flags or in the environment, missing keys, or a port in use.
    Stopped: too few sites or valid replies, or the SuperLink was lost repeatedly.
  """
  validate_networked(launch.config, f"--role={launch.role}")
  check_proxies()
  carry = (_local_sites if launch.role == "local-net" else _remote_sites)(launch, notify)
  config = without_baselines(launch.config)
  return run.run_experiment(
    config, launch.workdir, say=notify, run_plan=carry, splits=SERVER_SPLITS
  )


def _remote_sites(launch: Launch, notify: Notify) -> run.PlanRunner:
  """Returns a function that runs a plan's rounds with sites on other hosts."""
  host, _, port = launch.superlink.rpartition(":")
  tls, public_keys = None, list[Path]()
  if launch.insecure:
    notify("--insecure: no TLS and no keys. Anyone who reaches the port can read and take part")
  else:
    tls = certificates.read_tls_files(launch.keys)
    public_keys = sorted((launch.keys / site_keys.SITES).glob("*.pub"))
    if not public_keys:
      raise UserError(
        f"{launch.keys / site_keys.SITES}: expected the public keys of the sites, SITE.pub; got"
        " none. Each site makes one with: afspl keys site NAME"
      )

  def carry(setup: Setup, plan: Plan, progress: Progress) -> Params:
    folder = plan.folder.path / "superlink"
    with SuperLink(folder, host.strip("[]"), int(port), tls, notify) as superlink:
      for file in public_keys:
        superlink.register(file)
      notify(f"listening on {launch.superlink}; {len(public_keys) or 'any'} sites may take part")
      return _run_rounds(superlink, plan, setup.config.data.num_clients, progress)

  return carry


_MAX_LOSSES = 3  # of the SuperLink, without a finished round in between


def _run_rounds(
  superlink: SuperLink,
  plan: Plan,
  num_sites: int,
  progress: Progress,
  check: Callable[[], None] = lambda: None,
) -> Params:
  """Runs a plan's rounds; starts a new run from the checkpoint if the SuperLink loses the run."""
  losses, last = 0, -1
  while True:
    try:
      with open_grid(superlink, check=check) as grid:
        return run_rounds(grid, plan, num_sites, progress)
    except RunLost as error:
      done = max((line["round"] for line in plan.folder.metrics()), default=-1)
      losses, last = (losses + 1 if done == last else 1), done
      if losses == _MAX_LOSSES:
        raise
      progress.waiting(f"continuing from the last checkpoint: {error}")


def join_federation(launch: Launch, notify: Notify = tqdm.write) -> None:
  """Takes part in a federation as one site, until interrupted.

  Raises:
    UserError: a mistake in the flags or in the environment, wrong keys, or missing data.
  """
  validate_networked(launch.config, f"--role={launch.role}")
  check_proxies()
  credentials = None
  if launch.insecure:
    notify("--insecure: no TLS and no key. Others on the network can read the messages")
  else:
    credentials = Credentials(launch.keys / "ca.crt", launch.keys / f"{launch.site}.key")
  if launch.roster and not launch.config.secure.aggregation:
    raise UserError("--roster: expected with --config.secure.aggregation=true; leave it out")
  only_site = launch.site if launch.own_data else ""
  with RunFolder.open(launch.workdir, to_dict(launch.config)) as folder:
    sites = {launch.site: credentials}
    _answer_for_sites(
      launch.config, folder, sites, launch.superlink, only_site, notify, launch.roster
    )


def _answer_for_sites(
  config: Experiment,
  folder: RunFolder,
  sites: Mapping[str, Credentials | None],
  superlink: str,
  only_site: str,
  notify: Notify,
  roster: Path | None = None,
) -> None:
  """Answers the messages to some sites, with one copy of the models.

  Args:
    config: the experiment.
    folder: the sites' run folder.
    sites: names and credentials; None: without TLS.
    superlink: HOST:PORT of the server.
    only_site: the site whose own data all of the local data is; "": the data is partitioned.
    notify: gets each message for the user.
    roster: of all sites' public keys; None: keys are pinned when they are first seen.
  """
  config = without_baselines(config)
  validate(config)
  store = ClientStore(folder.path / "clients")
  masking, clipping = _masking(config, sites, store, roster), clipping_of(config, store.folder)
  enable_compilation_cache()
  inputs = find_inputs(config, SITE_SPLITS)
  setup = prepare_setup(config, inputs, store, site=only_site)
  folder.require_same(setup.facts)
  assert setup.trainer is not None, "there is data to train on"
  known = sorted(setup.clients["train"])
  if missing := sorted(set(sites) - set(known)):
    raise UserError(
      f"--site: expected one of {', '.join(known)}, the sites of this experiment's data; got"
      f" {missing[0]!r}. To use your own data, give its folder: --data=FOLDER"
    )
  app = LoggedApp(
    SiteApp(setup.trainer, setup.shared, setup.terms, clipping, masking, setup.statistics),
    DisclosureLog(folder.path, setup.shared, sync=True),
    setup.trainer.site,
  )
  with ExitStack() as stack:
    nodes = []
    for name, credentials in sites.items():
      place, node_config = folder.path / "supernode" / name, {"partition-id": known.index(name)}
      node = SuperNode(place, superlink, name, credentials, node_config, notify)
      nodes.append(stack.enter_context(node))
      examples = len(setup.clients["train"][name])
      notify(f"{name}: ready with {examples} examples; its data and local prompt stay here")
    if setup.trainer.private_batches:
      notify(setup.trainer.private_batches.spent_text())
    answer_messages(app, nodes)


def _masking(
  config: Experiment,
  sites: Mapping[str, Credentials | None],
  store: ClientStore,
  roster: Path | None,
) -> Masking | None:
  """What hides the sites' updates in their sum, if the config asks for it."""
  identities = {
    site: site_identity(site, credentials, store.folder_of(site), roster)
    for site, credentials in sites.items()
    if config.secure.aggregation
  }
  return masking_of(config, identities.__getitem__)


def _local_sites(launch: Launch, notify: Notify) -> run.PlanRunner:
  """Returns a function that runs a plan's rounds with sites on this host."""

  def carry(setup: Setup, plan: Plan, progress: Progress) -> Params:
    config, folder = setup.config, plan.folder.path
    keys = folder / "keys"
    if not (keys / "server.pem").exists():
      certificates.make_tls_files(keys, [])
    names = _site_names(config)
    for name in names:
      if not (keys / f"{name}.key").exists():
        site_keys.make_site_key(keys, name)
    port = free_port()
    tls = certificates.read_tls_files(keys)
    with SuperLink(folder / "superlink", "127.0.0.1", port, tls, notify) as superlink:
      for name in names:
        superlink.register(keys / f"{name}.pub")
      context = multiprocessing.get_context("spawn")
      sites = context.Process(
        target=_sites_process, args=(config, folder, names, keys, f"127.0.0.1:{port}")
      )
      sites.start()

      def check() -> None:
        if not sites.is_alive():
          raise UserError(
            f"sites: expected their process to run until the end; it ended with status"
            f" {sites.exitcode}. The line that it printed says why. Start the same command again to"
            " go on"
          )

      try:
        return _run_rounds(superlink, plan, len(names), progress, check)
      finally:
        sites.terminate()
        sites.join()

  return carry


def _site_names(config: Experiment) -> list[str]:
  """Returns the names of an experiment's sites, by the partition of its data."""
  source = open_source(config.data, "train")
  examples = {"train": [source[i] for i in range(len(source))]}
  return sorted(partition(examples, config.data, config.seed)["train"])


def _sites_process(
  config: Experiment, folder: Path, names: Sequence[str], keys: Path, superlink: str
) -> None:
  """Runs in the process of the sites, which ends with its parent."""
  end_with_parent()
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and ends this process
  signal.signal(signal.SIGTERM, lambda *_: sys.exit())
  sites = {name: Credentials(keys / "ca.crt", keys / f"{name}.key") for name in names}
  try:
    with RunFolder.open(folder / site_keys.SITES, to_dict(config)) as opened:
      _answer_for_sites(config, opened, sites, superlink, "", tqdm.write)
  except UserError as error:
    sys.exit(f"sites: {error}")
