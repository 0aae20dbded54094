"""Executors of Flower's tasks: `open_grid` on the server's host, `answer_messages` at a site.

Flower's own executors install the code that a run carries, and start a process for every message.
These two execute objects of this process: the caller's server loop and the caller's ClientApp.

A process uses one of the two: Flower keeps the run and the node of a process in global variables.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager

import httpx
from flwr.app import Error, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from afspl_jax.errors import Stopped, UserError
from afspl_jax.federation.contracts import CLIENT_RAISED
from afspl_jax.federation.transport.connection import RETRY_STATUS, FlowerService
from afspl_jax.federation.transport.flower_private import (
  AcquireTaskRequest,
  HeartbeatSender,
  HttpGrid,
  PullTaskInputRequest,
  PushTaskOutputRequest,
  Run,
  RuntimeHttpClient,
  SendTaskHeartbeatRequest,
  SubStatus,
  TaskIdentity,
  pull_task_input,
  push_message,
  push_task_output,
  run_from_proto,
)
from afspl_jax.federation.transport.superlink import SuperLink
from afspl_jax.federation.transport.supernode import SuperNode

_SERVER_TASK, _CLIENT_TASK = "flwr-serverapp", "flwr-clientapp"
_FOREIGN_RUN = "this host's server did not start this run: the code that it carries is not executed"

_LOG = logging.getLogger(__name__)


class RunLost(Stopped):
  """The SuperLink ended the run, or stopped answering; a new grid can continue."""


@contextmanager
def open_grid(superlink: SuperLink, retry_seconds: float = 300.0) -> Iterator[Grid]:
  """Opens a Grid that reaches the SuperNodes of a SuperLink, for one run.

  The run is new, and ends with the context; it ends as failed if an exception leaves the context.
  Earlier runs, for example of a killed process, are ended.

  Args:
    superlink: the SuperLink of this host.
    retry_seconds: how long to wait for a SuperLink that does not answer. It ends a run without a
      heartbeat for a minute of its own running time.

  Yields:
    The grid. Its methods raise RunLost.
  """
  run_id = superlink.start_new_run()
  service = superlink.service
  token = _acquire_run(service, run_id)
  with service.runtime_client(token, retry_seconds) as client, _heartbeats(service, token):
    task = client.PullTaskInput(PullTaskInputRequest())
    TaskIdentity.task_id, TaskIdentity.run_id = task.task_id, run_id
    TaskIdentity.node_id = task.context.node_id
    try:
      yield NetworkGrid(client, run_from_proto(task.run), superlink.site_names)
    except BaseException as error:
      interrupted = isinstance(error, KeyboardInterrupt)
      status = SubStatus.STOPPED if interrupted else SubStatus.FAILED
      _end_task(service, token, status, f"{type(error).__name__}: {error}")
      raise
    _end_task(service, token, SubStatus.COMPLETED, "")


class NetworkGrid(HttpGrid):
  """Flower's grid over our own connection; it raises RunLost and knows the sites of its nodes."""

  def __init__(self, client: RuntimeHttpClient, run: Run, site_names: Mapping[bytes, str]):
    super().__init__(token="in the client")
    self._client, self._site_names = client, site_names
    self._sites: dict[int, str | None] = {}
    self.set_run(run)

  def get_node_ids(self) -> list[int]:
    """Returns the node ids of the connected SuperNodes."""
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


def answer_messages(
  app: ClientApp,
  supernodes: Sequence[SuperNode],
  stop: Callable[[], bool] = lambda: False,
  poll: float = 0.1,
) -> None:
  """Answers the messages that SuperNodes fetch, one after the other, until `stop`.

  An exception of the app becomes an error reply, except UserError, KeyboardInterrupt and
  SystemExit, which leave this function. A SuperNode that dies is restarted; for the message that it
  had fetched, the server gets an error reply from Flower.

  Args:
    app: gets every message. Code that a run carries is ignored.
    supernodes: running SuperNodes of this process.
    stop: called between messages; True ends the function.
    poll: seconds between two requests for messages.
  """
  with ExitStack() as stack:
    executors = [stack.enter_context(closing(_NodeExecutor(app, node))) for node in supernodes]
    while not stop():
      answered = [executor.answer_next() for executor in executors]
      if not any(answered):
        time.sleep(poll)


class _NodeExecutor:
  """Answers the messages of one SuperNode."""

  def __init__(self, app: ClientApp, node: SuperNode):
    self._app, self._node = app, node
    self._service: FlowerService | None = None  # that `_client` is connected to
    self._client: RuntimeHttpClient | None = None

  def answer_next(self) -> bool:
    """Answers the next message; returns False if there is none."""
    self._node.supervise()
    token = self._acquire()
    if not token:
      return False
    service = self._node.service
    try:
      with service.runtime_client(token) as client, _heartbeats(service, token):
        execute_task(self._app, client)
    except UserError:
      raise  # the site cannot log what would leave it
    except Exception as error:  # noqa: BLE001 - a dead SuperNode, or a malformed message
      # The task's lease expires, and the SuperNode then answers with an error.
      reason = f"{type(error).__name__}: {error}"
      _LOG.warning("%s: could not answer a message: %s", self._node.site, reason)
    return True

  def close(self) -> None:
    """Closes the connection."""
    if self._client is not None:
      self._client.close()

  def _acquire(self) -> str:
    """Returns the token of the oldest task; "" if there is none, or the SuperNode is not up."""
    if self._client is None or self._service != self._node.service:
      self.close()
      self._service = self._node.service
      self._client = self._service.runtime_client(retry_seconds=0.0)
    try:
      return _acquire_task(self._client, _CLIENT_TASK)[1]
    except httpx.HTTPError as error:
      if isinstance(error, httpx.HTTPStatusError):
        _LOG.warning("%s: its SuperNode rejected a request for work: %s", self._node.site, error)
      return ""


def execute_task(app: ClientApp, client: RuntimeHttpClient) -> None:
  """Answers the message of a task with the app's reply, or with the error that it raised.

  Raises:
    UserError: the app raised it; nothing is sent.
  """
  message, context, _, _ = pull_task_input(client)
  status, reason = SubStatus.COMPLETED, ""  # for the site's own SuperNode
  try:
    reply = app(message, context)
    if not isinstance(reply, Message):
      raise TypeError(f"expected the app to return a Message; got {type(reply).__name__}")
  except UserError:
    raise
  except Exception as error:  # noqa: BLE001 - any exception of a client becomes its reply
    _LOG.info("node %d raised", context.node_id, exc_info=error)
    status, reason = SubStatus.FAILED, f"{type(error).__name__}: {error}"
    reply = Message(Error(CLIENT_RAISED, reason), reply_to=message)
  push_message(client, reply, context)
  push_task_output(client, context, status, reason)


def _acquire_run(service: FlowerService, run_id: int) -> str:
  """Returns the token of the run's task; ends all other waiting runs as failed."""
  while True:
    with service.runtime_client() as client:
      run, token = _acquire_task(client, _SERVER_TASK)
    if not token:
      raise RunLost(f"run {run_id}: expected it to wait for this process; another one acquired it")
    if run == run_id:
      return token
    _LOG.warning("run %d: %s", run, _FOREIGN_RUN)
    _end_task(service, token, SubStatus.FAILED, _FOREIGN_RUN)


def _acquire_task(client: RuntimeHttpClient, task_type: str) -> tuple[int, str]:
  """Returns the run and the token of the oldest task; the token is "" if there is none."""
  response = client.AcquireTask(AcquireTaskRequest(supported_task_types=[task_type]))
  return response.task.run_id, response.token


def _end_task(service: FlowerService, token: str, status: str, reason: str) -> None:
  try:
    with service.runtime_client(token) as client:
      client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=reason))
  except httpx.HTTPError as error:
    _LOG.warning("could not report the end of the run to the SuperLink: %s", error)


@contextmanager
def _heartbeats(service: FlowerService, token: str) -> Iterator[None]:
  """Renews the task's lease, which lasts a minute, while the context is open."""
  with service.runtime_client(token, retry_seconds=0.0) as client:
    sender = HeartbeatSender(lambda: _send_heartbeat(client))
    sender.start()
    try:
      yield
    finally:
      sender.stop()


def _send_heartbeat(client: RuntimeHttpClient) -> bool:
  """Sends one heartbeat; returns False to have it sent again soon."""
  try:
    client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
  except httpx.TransportError:
    return False
  except httpx.HTTPStatusError as error:
    return error.response.status_code not in RETRY_STATUS  # the executor will see a lost lease
  return True


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
