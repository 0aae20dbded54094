"""The executor of a site: `answer_messages` answers what the site's SuperNodes fetch.

Flower's own executor installs the code that a run carries and starts a process for every message.
This one calls an object of this process, the caller's ClientApp, in the caller's thread. Each
SuperNode has a thread that waits for its messages and sends the replies, so that a SuperNode that
does not respond delays no other one.
"""

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from typing import NamedTuple

import httpx
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from afspl_jax.errors import UserError
from afspl_jax.federation.contracts import CLIENT_RAISED
from afspl_jax.federation.transport.connection import FlowerService
from afspl_jax.federation.transport.flower_private import (
  RuntimeHttpClient,
  SubStatus,
  pull_task_input,
  push_message,
  push_task_output,
)
from afspl_jax.federation.transport.supernode import SuperNode
from afspl_jax.federation.transport.tasks import acquire_task, send_heartbeats

_CLIENT_TASK = "flwr-clientapp"
_PAUSE = 0.2  # seconds after a failure, or a request that the SuperNode did not hold back

_LOG = logging.getLogger(__name__)


class Answer(NamedTuple):
  """What the app returned for a message, or the error that it raised."""

  reply: Message
  status: str  # of the task, for the site's own SuperNode
  reason: str


class Question(NamedTuple):
  """A message that waits for the app's answer."""

  message: Message
  context: Context
  answer: "queue.SimpleQueue[Answer | None]"  # None: there will be no answer


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
    poll: seconds between two calls of `stop`, and between two looks at the SuperNodes.
  """
  questions: queue.SimpleQueue[Question] = queue.SimpleQueue()
  closed = threading.Event()
  with ExitStack() as stack:
    for node in supernodes:
      stack.enter_context(closing(_Courier(node, questions, closed)))
    stack.callback(closed.set)  # all of them end at the same time
    while not stop():
      for node in supernodes:
        node.supervise()
      try:
        question = questions.get(timeout=poll)
      except queue.Empty:
        continue
      question.answer.put(call_app(app, question.message, question.context))


def call_app(app: ClientApp, message: Message, context: Context) -> Answer:
  """Returns the app's reply to a message, or an error reply if it raises.

  Raises:
    UserError: the app raised it; nothing may be sent.
  """
  try:
    reply = app(message, context)
    if not isinstance(reply, Message):
      raise TypeError(f"expected the app to return a Message; got {type(reply).__name__}")
  except UserError:
    raise  # the site cannot log what would leave it
  except Exception as error:  # noqa: BLE001 - any exception of a client becomes its reply
    _LOG.info("node %d raised", context.node_id, exc_info=error)
    reason = f"{type(error).__name__}: {error}"
    return Answer(Message(Error(CLIENT_RAISED, reason), reply_to=message), SubStatus.FAILED, reason)
  return Answer(reply, SubStatus.COMPLETED, "")


class _Courier:
  """Takes the messages of one SuperNode to the app, and the replies back, in its own thread.

  Args:
    node: a running SuperNode.
    questions: gets the messages.
    closed: set when no more messages are wanted.
  """

  def __init__(
    self, node: SuperNode, questions: "queue.SimpleQueue[Question]", closed: threading.Event
  ):
    self._node, self._questions, self._closed = node, questions, closed
    self._answer: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
    self._service: FlowerService | None = None  # that `_client` is connected to
    self._client: RuntimeHttpClient | None = None
    self._thread = threading.Thread(target=self._run, name=f"courier of {node.site}", daemon=True)
    self._thread.start()

  def close(self) -> None:
    """Waits for the end of the thread. A message that waits for its answer gets none."""
    self._answer.put(None)
    self._thread.join()
    if self._client is not None:
      self._client.close()

  def _run(self) -> None:
    while not self._closed.is_set():
      try:
        service = self._node.service  # a restart changes it
        token = self._acquire(service)
        if token:
          self._carry(service, token)
        else:
          self._closed.wait(_PAUSE)
      except Exception as error:  # noqa: BLE001 - a dead SuperNode, or a malformed message
        reason = f"{type(error).__name__}: {error}"
        _LOG.warning("%s: could not answer a message: %s", self._node.site, reason)
        self._closed.wait(_PAUSE)

  def _carry(self, service: FlowerService, token: str) -> None:
    """Carries one message to the app and its reply back."""
    with service.runtime_client(token) as client, send_heartbeats(service, token):
      try:
        message, context, _, _ = pull_task_input(client)
      except Exception:
        # Flower would never answer a message that no executor could fetch. A new SuperNode gets it
        # again, or lets the server know that it is lost.
        if service == self._node.service:  # else there is a new one already
          self._node.child.stop()
        raise
      self._questions.put(Question(message, context, self._answer))
      answer = self._answer.get()
      if answer is not None:
        push_message(client, answer.reply, context)
        push_task_output(client, context, answer.status, answer.reason)

  def _acquire(self, service: FlowerService) -> str:
    """Returns the token of the oldest task; "" if there is none, or the SuperNode is not up.

    The SuperNode holds the request back for a while if there is none (task_gate.py).
    """
    if self._client is None or self._service != service:
      if self._client is not None:
        self._client.close()
      self._service, self._client = service, service.runtime_client(retry_seconds=0.0)
    try:
      return acquire_task(self._client, _CLIENT_TASK)[1]
    except httpx.HTTPError as error:
      if isinstance(error, httpx.HTTPStatusError):
        _LOG.warning("%s: its SuperNode rejected a request for work: %s", self._node.site, error)
      return ""
