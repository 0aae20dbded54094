"""Who does the work that Flower hands out: `open_grid` on the server's host, `serve` at a site.

Flower's own executors install the code that a run carries and start a process for every message.
These two run what this process already has: the caller's server loop, the caller's ClientApp.

A process does one or the other: Flower keeps a process's run and node in global variables.
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
from afspl_jax.federation.transport.connection import BUSY, Endpoint
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
_FOREIGN = "not the run that this host's server works for: what it carries is never executed"

_LOG = logging.getLogger(__name__)


class RunLost(Stopped):
  """The SuperLink has ended the run, or is gone for good; a new grid goes on."""


@contextmanager
def open_grid(superlink: SuperLink, patience: float = 300.0) -> Iterator[Grid]:
  """A Grid that reaches the SuperNodes of a SuperLink, for one run.

  The run is new, and ends with the context: as failed, if that is left by an exception. Earlier
  runs, such as one whose process was killed, are ended.

  Args:
    superlink: of this host.
    patience: seconds for which the SuperLink may be gone, to be started again; it ends a run that
      it has not heard of for a minute of its own time.

  Yields:
    The grid. Its methods raise RunLost.
  """
  run_id = superlink.submit()
  endpoint = superlink.endpoint
  token = _acquire_run(endpoint, run_id)
  with endpoint.runtime(token, patience) as client, _kept_alive(endpoint, token):
    task = client.PullTaskInput(PullTaskInputRequest())
    TaskIdentity.task_id, TaskIdentity.run_id = task.task_id, run_id
    TaskIdentity.node_id = task.context.node_id
    try:
      yield NetworkGrid(client, run_from_proto(task.run), superlink.names)
    except BaseException as error:
      stopped = isinstance(error, KeyboardInterrupt)
      how = SubStatus.STOPPED if stopped else SubStatus.FAILED
      _finish(endpoint, token, how, f"{type(error).__name__}: {error}")
      raise
    _finish(endpoint, token, SubStatus.COMPLETED, "")


class NetworkGrid(HttpGrid):
  """Flower's grid over a connection of ours, which says what was lost."""

  def __init__(self, client: RuntimeHttpClient, run: Run, names: Mapping[bytes, str]):
    super().__init__(token="in the client")
    self._client, self._names = client, names
    self._owners: dict[int, str | None] = {}
    self.set_run(run)

  def get_node_ids(self) -> list[int]:
    """Node ids of the SuperNodes that are connected."""
    with _told():
      nodes = list(super().get_nodes())
    self._owners = {node.node_id: self._names.get(node.public_key) for node in nodes}
    return list(self._owners)

  def owner(self, node: int) -> str | None:
    """The site whose key a connected node has; None where sites have no keys."""
    return self._owners.get(node)

  def push_messages(self, messages: Iterable[Message]) -> list[str | None]:
    """Sends the messages; returns their ids, None for one that was not taken."""
    with _told():
      return [message_id or None for message_id in super().push_messages(list(messages))]

  def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
    """The replies that have come. To one that was had before, Flower invents an error reply."""
    with _told():
      return list(super().pull_messages(list(message_ids)))


def serve(
  app: ClientApp,
  supernodes: Sequence[SuperNode],
  stop: Callable[[], bool] = lambda: False,
  poll: float = 0.1,
) -> None:
  """Answers the messages that SuperNodes fetch, one after the other, until told to stop.

  An exception of the app becomes an error reply; UserError, KeyboardInterrupt and SystemExit pass
  through. A SuperNode that dies is started again, and what it had asked for is lost: the server
  sees an error reply of Flower's.

  Args:
    app: answers; a run's own code is never looked at.
    supernodes: of this process, running.
    stop: asked between messages.
    poll: seconds between looks for work.
  """
  with ExitStack() as stack:
    desks = [stack.enter_context(closing(_Desk(app, node))) for node in supernodes]
    while not stop():
      served = [desk.serve_next() for desk in desks]
      if not any(served):
        time.sleep(poll)


class _Desk:
  """Where the messages of one SuperNode are answered."""

  def __init__(self, app: ClientApp, node: SuperNode):
    self._app, self._node = app, node
    self._endpoint: Endpoint | None = None  # that the client is for
    self._client: RuntimeHttpClient | None = None

  def serve_next(self) -> bool:
    """Answers the next message; False if there is none."""
    self._node.check()
    token = self._acquire()
    if not token:
      return False
    endpoint = self._node.endpoint
    try:
      with endpoint.runtime(token) as client, _kept_alive(endpoint, token):
        _answer(self._app, client)
    except UserError:
      raise  # the site cannot note what would leave it
    except Exception as error:  # noqa: BLE001 - a dead SuperNode, or what a peer made of a message
      # The task's lease runs out, and the SuperNode answers in our place.
      why = f"{type(error).__name__}: {error}"
      _LOG.warning("%s: a message went unanswered: %s", self._node.site, why)
    return True

  def close(self) -> None:
    if self._client is not None:
      self._client.close()

  def _acquire(self) -> str:
    """The token of the task that waits longest; "" if none does, or the SuperNode is not up."""
    if self._client is None or self._endpoint != self._node.endpoint:
      self.close()
      self._endpoint = self._node.endpoint
      self._client = self._endpoint.runtime(patience=0.0)
    try:
      return _acquire(self._client, _CLIENT_TASK)[1]
    except httpx.HTTPError as error:
      if isinstance(error, httpx.HTTPStatusError):
        _LOG.warning("%s: its SuperNode refuses to hand out work: %s", self._node.site, error)
      return ""


def _answer(app: ClientApp, client: RuntimeHttpClient) -> None:
  message, context, _, _ = pull_task_input(client)
  status, why = SubStatus.COMPLETED, ""  # for the site's own SuperNode
  try:
    reply = app(message, context)
    if not isinstance(reply, Message):
      raise TypeError(f"expected the app to return a Message; got {type(reply).__name__}")
  except UserError:
    raise
  except Exception as error:  # noqa: BLE001 - whatever a client raises is its reply
    _LOG.info("node %d raised", context.node_id, exc_info=error)
    status, why = SubStatus.FAILED, f"{type(error).__name__}: {error}"
    reply = Message(Error(CLIENT_RAISED, why), reply_to=message)
  push_message(client, reply, context)
  push_task_output(client, context, status, why)


def _acquire_run(endpoint: Endpoint, run_id: int) -> str:
  """The token of the run's task; what else waits for an executor is ended as failed."""
  while True:
    with endpoint.runtime() as client:
      run, token = _acquire(client, _SERVER_TASK)
    if not token:
      raise RunLost(f"run {run_id}: expected it to wait for this process; something else took it")
    if run == run_id:
      return token
    _LOG.warning("run %d: %s", run, _FOREIGN)
    _finish(endpoint, token, SubStatus.FAILED, _FOREIGN)


def _acquire(client: RuntimeHttpClient, kind: str) -> tuple[int, str]:
  """The run and token of the task that waits longest; the token is "" if none waits."""
  response = client.AcquireTask(AcquireTaskRequest(supported_task_types=[kind]))
  return response.task.run_id, response.token


def _finish(endpoint: Endpoint, token: str, how: str, why: str) -> None:
  try:
    with endpoint.runtime(token) as client:
      client.PushTaskOutput(PushTaskOutputRequest(sub_status=how, details=why))
  except httpx.HTTPError as error:
    _LOG.warning("the SuperLink was not told that the run ended: %s", error)


@contextmanager
def _kept_alive(endpoint: Endpoint, token: str) -> Iterator[None]:
  """Keeps the task's lease, of a minute, while the context is open."""
  with endpoint.runtime(token, patience=0.0) as client:
    heart = HeartbeatSender(lambda: _beat(client))
    heart.start()
    try:
      yield
    finally:
      heart.stop()


def _beat(client: RuntimeHttpClient) -> bool:
  """One heartbeat; False: to be tried again soon."""
  try:
    client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
  except httpx.TransportError:
    return False
  except httpx.HTTPStatusError as error:
    return error.response.status_code not in BUSY  # who works for the task will hear of it
  return True


@contextmanager
def _told() -> Iterator[None]:
  try:
    yield
  except httpx.HTTPStatusError as error:
    raise RunLost(
      f"the SuperLink has ended this run ({error.response.status_code}): it did not hear of this "
      "process for a minute, or was told to. Start the same command again to go on"
    ) from error
  except httpx.TransportError as error:
    raise RunLost(
      f"the SuperLink does not answer any more ({type(error).__name__}: {error}). "
      "Start the same command again to go on"
    ) from error
