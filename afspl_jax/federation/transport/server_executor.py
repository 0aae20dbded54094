"""The server's executor: `open_grid` executes the task of the run that this process starts.

Flower's own executor installs the code that a run carries and starts a process for it. This one
executes an object of this process, the caller's server loop. A process uses either this executor or
the one of sites (site_executor.py): Flower keeps the run and the node in global variables.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import httpx
from flwr.app import Message
from flwr.serverapp import Grid

from afspl_jax.errors import Stopped
from afspl_jax.federation.transport.connection import FlowerService
from afspl_jax.federation.transport.flower_private import (
  HttpGrid,
  PullTaskInputRequest,
  PushTaskOutputRequest,
  Run,
  RuntimeHttpClient,
  SubStatus,
  TaskIdentity,
  run_from_proto,
)
from afspl_jax.federation.transport.superlink import SuperLink
from afspl_jax.federation.transport.tasks import acquire_task, send_heartbeats

_SERVER_TASK = "flwr-serverapp"
_FOREIGN_RUN = "this host's server did not start this run: the code that it carries is not executed"

_LOG = logging.getLogger(__name__)


class RunLost(Stopped):
  """The SuperLink ended the run, or stopped answering; a new grid can continue."""


@contextmanager
def open_grid(
  superlink: SuperLink, retry_seconds: float = 300.0, check: Callable[[], None] = lambda: None
) -> Iterator[Grid]:
  """Opens a Grid that reaches the SuperNodes of a SuperLink, for one run.

  The run is new, and ends with the context; it ends as failed if an exception leaves the context.
  Earlier runs, for example of a killed process, are ended.

  Args:
    superlink: the SuperLink of this host.
    retry_seconds: how long to wait for a SuperLink that does not answer. It ends a run without a
      heartbeat for a minute of its own running time.
    check: called whenever the grid looks for nodes; an exception that it raises ends the run.

  Yields:
    The grid. Its methods raise RunLost.
  """
  run_id = superlink.start_new_run()
  service = superlink.service
  token = _acquire_run(service, run_id)
  with service.runtime_client(token, retry_seconds) as client, send_heartbeats(service, token):
    task = client.PullTaskInput(PullTaskInputRequest())
    TaskIdentity.task_id, TaskIdentity.run_id = task.task_id, run_id
    TaskIdentity.node_id = task.context.node_id
    try:
      yield NetworkGrid(client, run_from_proto(task.run), superlink.site_names, check)
    except BaseException as error:
      interrupted = isinstance(error, KeyboardInterrupt)
      status = SubStatus.STOPPED if interrupted else SubStatus.FAILED
      _end_task(service, token, status, f"{type(error).__name__}: {error}")
      raise
    _end_task(service, token, SubStatus.COMPLETED, "")


class NetworkGrid(HttpGrid):
  """Flower's grid over our own connection; it raises RunLost and knows the sites of its nodes."""

  def __init__(
    self,
    client: RuntimeHttpClient,
    run: Run,
    site_names: Mapping[bytes, str],
    check: Callable[[], None],
  ):
    super().__init__(token="in the client")
    self._client, self._site_names, self._check = client, site_names, check
    self._sites: dict[int, str | None] = {}
    self.set_run(run)

  def get_node_ids(self) -> list[int]:
    """Returns the node ids of the connected SuperNodes."""
    self._check()
    with _raising_run_lost():
      nodes = list(super().get_nodes())
    self._sites = {node.node_id: self._site_names.get(node.public_key) for node in nodes}
    return list(self._sites)

  def site_of(self, node: int) -> str | None:
    """Returns the site whose key a connected node has; None if sites have no keys."""
    return self._sites.get(node)

  def push_messages(self, messages: Iterable[Message]) -> list[str | None]:
    """Sends messages; returns their ids, with None for a message that was rejected."""
    with _raising_run_lost():
      return [message_id or None for message_id in super().push_messages(list(messages))]

  def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
    """Returns the replies that have arrived.

    Ask for each reply once: for one that was already returned, Flower makes up an error reply.
    """
    with _raising_run_lost():
      return list(super().pull_messages(list(message_ids)))


def _acquire_run(service: FlowerService, run_id: int) -> str:
  """Returns the token of the run's task; ends all other waiting runs as failed."""
  while True:
    with service.runtime_client() as client:
      run, token = acquire_task(client, _SERVER_TASK)
    if not token:
      raise RunLost(f"run {run_id}: expected it to wait for this process; another one acquired it")
    if run == run_id:
      return token
    _LOG.warning("run %d: %s", run, _FOREIGN_RUN)
    _end_task(service, token, SubStatus.FAILED, _FOREIGN_RUN)


def _end_task(service: FlowerService, token: str, status: str, reason: str) -> None:
  try:
    with service.runtime_client(token) as client:
      client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=reason))
  except httpx.HTTPError as error:
    _LOG.warning("could not report the end of the run to the SuperLink: %s", error)


@contextmanager
def _raising_run_lost() -> Iterator[None]:
  """Raises RunLost in place of an HTTP error."""
  try:
    yield
  except httpx.HTTPStatusError as error:
    raise RunLost(
      f"the SuperLink has ended this run ({error.response.status_code}): it got no heartbeat of"
      " this process for a minute, or somebody stopped the run. Start the same command again to"
      " go on"
    ) from error
  except httpx.TransportError as error:
    raise RunLost(
      f"the SuperLink no longer answers ({type(error).__name__}: {error}). Start the same command"
      " again to go on"
    ) from error
