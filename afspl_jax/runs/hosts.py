"""A federation over a network: what the server's host runs, what a site runs, and a rehearsal.

Every host runs one command, and that one process tree. The server's is a SuperLink, Flower's, and
this process with the round loop. A site's is a SuperNode, Flower's, and this process, which loads
the backbones and compiles the step once and answers what the SuperNode fetches. Both run what is
installed on them: nothing that arrives over the wire is executed.
"""

import multiprocessing
import signal
import sys
from collections.abc import Callable, Sequence
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
from afspl_jax.federation.privacy.update_clipping import clipping_of
from afspl_jax.federation.protocol.disclosure_log import DisclosureLog, LoggedApp
from afspl_jax.federation.secure.site import masking_of
from afspl_jax.federation.server.rounds import Plan, Progress, run_rounds
from afspl_jax.federation.transport import certificates, site_keys
from afspl_jax.federation.transport.connection import free_port
from afspl_jax.federation.transport.executors import RunLost, open_grid, serve
from afspl_jax.federation.transport.parent_process import end_with_parent
from afspl_jax.federation.transport.superlink import SuperLink
from afspl_jax.federation.transport.supernode import Credentials, SuperNode
from afspl_jax.runs import run
from afspl_jax.runs.prepare import SCORED, TRAINED, Setup, find, keep_compiled, prepare
from afspl_jax.runs.validate import check, check_networked
from afspl_jax.storage.run_folder import RunFolder
from afspl_jax.types import Params

SITES = "sites"  # in a server's folder of keys: the public keys of its sites

Say = Callable[[str], None]


def federate(launch: Launch, say: Say = tqdm.write) -> dict[str, dict[str, Any]]:
  """Runs the server's side of an experiment, or what is left of it, and scores its last prompter.

  Args:
    launch: of a server, whose sites are on other hosts, or of a "local-net", which starts them on
      this host, over TLS and with keys, in one process with one copy of the models.
    say: tells the user what happens.

  Returns:
    The lines of metrics.jsonl about the test split, by their name for it.

  Raises:
    UserError: a mistake in the flags, missing keys, or a port that cannot be used.
    Stopped: too few sites or valid replies, or the SuperLink was lost again and again.
  """
  check_networked(launch.config, f"--role={launch.role}")
  carry = (_rehearsed if launch.role == "local-net" else _served)(launch, say)
  return run.federate(launch.config, launch.workdir, say=say, carry=carry, splits=SCORED)


def _served(launch: Launch, say: Say) -> run.Carrier:
  """Brings a plan's rounds to sites on other hosts."""
  host, _, port = launch.superlink.rpartition(":")
  server_keys, public = None, list[Path]()
  if launch.insecure:
    say("--insecure: no TLS and no keys. Whoever reaches the port can read and take part")
  else:
    server_keys = certificates.read_server_keys(launch.keys)
    public = sorted((launch.keys / SITES).glob("*.pub"))
    if not public:
      raise UserError(
        f"{launch.keys / SITES}: expected the public keys of the sites, SITE.pub; got none."
        " A site makes its own with: afspl keys site NAME"
      )

  def carry(setup: Setup, plan: Plan, progress: Progress) -> Params:
    folder = plan.folder.path / "superlink"
    with SuperLink(folder, host.strip("[]"), int(port), server_keys, say) as superlink:
      for file in public:
        superlink.register(file)
      say(f"listening on {launch.superlink}; {len(public) or 'any'} sites may take part")
      return _carry(superlink, plan, setup.config.data.num_clients, progress)

  return carry


_LOSSES = 3  # in a row, without a round in between


def _carry(superlink: SuperLink, plan: Plan, num_sites: int, progress: Progress) -> Params:
  lost, last = 0, -1
  while True:
    try:
      with open_grid(superlink) as grid:
        return run_rounds(grid, plan, num_sites, progress)
    except RunLost as error:
      done = max((line["round"] for line in plan.folder.metrics()), default=-1)
      lost, last = (lost + 1 if done == last else 1), done
      if lost == _LOSSES:
        raise
      progress.waiting(f"going on from the last checkpoint: {error}")


def join(launch: Launch, say: Say = tqdm.write) -> None:
  """Takes part as one site until it is interrupted.

  Raises:
    UserError: a mistake in the flags, keys that do not fit, or data that is missing.
  """
  check_networked(launch.config, f"--role={launch.role}")
  credentials = None
  if launch.insecure:
    say("--insecure: no TLS and no key. What is sent can be read on its way")
  else:
    credentials = Credentials(launch.keys / "ca.crt", launch.keys / f"{launch.site}.key")
  site = launch.site if launch.own_data else ""
  with RunFolder.open(launch.workdir, to_dict(launch.config)) as folder:
    _take_part(launch.config, folder, [launch.site], launch.superlink, [credentials], site, say)


def _take_part(
  config: Experiment,
  folder: RunFolder,
  names: Sequence[str],
  superlink: str,
  credentials: Sequence[Credentials | None],
  owner: str,
  say: Say,
) -> None:
  """Answers for some sites, over one copy of the models."""
  check(config)
  keep_compiled()
  inputs = find(config, TRAINED)
  setup = prepare(config, inputs, ClientStore(folder.path / "clients"), site=owner)
  folder.agree_on(setup.facts)
  assert setup.trainer is not None, "there is data to train on"
  known = sorted(setup.clients["train"])
  if missing := sorted(set(names) - set(known)):
    raise UserError(
      f"--site: expected one of {', '.join(known)}, who share this experiment's data; got"
      f" {missing[0]!r}. For data of your own, say where it is: --data=FOLDER"
    )
  clipping = clipping_of(config, folder.path / "clients")
  app = LoggedApp(
    SiteApp(setup.trainer, setup.shared, setup.terms, clipping, masking_of(config)),
    DisclosureLog(folder.path, setup.shared, sync=True),
    setup.trainer.site,
  )
  with ExitStack() as stack:
    nodes = []
    for name, own in zip(names, credentials, strict=True):
      at = folder.path / "supernode" / name
      node = SuperNode(at, superlink, name, own, {"partition-id": known.index(name)}, say)
      nodes.append(stack.enter_context(node))
      examples = len(setup.clients["train"][name])
      say(f"{name}: ready with {examples} examples; its data and own prompt stay here")
    if setup.trainer.private_batches:
      say(setup.trainer.private_batches.spent_text())
    serve(app, nodes)


def _rehearsed(launch: Launch, say: Say) -> run.Carrier:
  """Brings a plan's rounds to sites on this host."""

  def carry(setup: Setup, plan: Plan, progress: Progress) -> Params:
    config, folder = setup.config, plan.folder.path
    where = folder / "keys"
    if not (where / "server.pem").exists():
      certificates.make_server_keys(where, [])
    names = _names_of_sites(config)
    for name in names:
      if not (where / f"{name}.key").exists():
        site_keys.make_site_key(where, name)
    port = free_port()
    server_keys = certificates.read_server_keys(where)
    with SuperLink(folder / "superlink", "127.0.0.1", port, server_keys, say) as superlink:
      for name in names:
        superlink.register(where / f"{name}.pub")
      context = multiprocessing.get_context("spawn")
      sites = context.Process(
        target=_rehearse, args=(config, folder, names, where, f"127.0.0.1:{port}")
      )
      sites.start()
      try:
        return _carry(superlink, plan, len(names), progress)
      finally:
        sites.terminate()
        sites.join()

  return carry


def _names_of_sites(config: Experiment) -> list[str]:
  """The names of an experiment's sites, as its data is split over them."""
  source = open_source(config.data, "train")
  examples = {"train": [source[i] for i in range(len(source))]}
  return sorted(partition(examples, config.data, config.seed)["train"])


def _rehearse(
  config: Experiment, folder: Path, names: Sequence[str], where: Path, superlink: str
) -> None:
  """The process of the sites; ends with its parent."""
  end_with_parent()
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends this
  signal.signal(signal.SIGTERM, lambda *_: sys.exit())
  credentials = [Credentials(where / "ca.crt", where / f"{name}.key") for name in names]
  try:
    with RunFolder.open(folder / SITES, to_dict(config)) as opened:
      _take_part(config, opened, names, superlink, credentials, "", tqdm.write)
  except UserError as error:
    sys.exit(f"sites: {error}")
