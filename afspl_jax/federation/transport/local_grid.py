"""Flower's Grid inside this process: no Ray, no sockets, one copy of the frozen weights."""

import logging
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from flwr.app import Array, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from afspl_jax.errors import UserError
from afspl_jax.federation.contracts import CLIENT_RAISED, CohortApp
from afspl_jax.federation.protocol.wire import TRAIN, serialized
from afspl_jax.federation.transport.flower_private import (
  InflatableObject,
  Run,
  TaskIdentity,
  inflate_object_from_contents,
)

_RUN_ID = 1
_SERVER_NODE = 1
_FIRST_CLIENT_NODE = 2

_LOG = logging.getLogger(__name__)


class Transfer(NamedTuple):
  """Bytes that one message and its reply took on the wire."""

  down: int  # to the client
  up: int  # from the client


class LocalGrid(Grid):
  """Runs a ClientApp in this process.

  An app that can answer several clients together (CohortApp) gets the training messages of a push
  in one call, any other app one message after the other.

  Every message and reply is serialized and deserialized by Flower's own wire objects, so nothing
  that can be changed is shared and bytes are those of a network. A client's exception becomes the
  error reply that a SuperNode would send; UserError, KeyboardInterrupt and SystemExit pass through.

  A client that hangs hangs the caller: `timeout` cannot be enforced in one process and is
  ignored. Deadlines are for the networked roles.

  Args:
    app: of every client.
    num_clients: nodes of this grid.
  """

  def __init__(self, app: ClientApp, num_clients: int):
    # A Message takes its run and sender from the process.
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, _RUN_ID, _SERVER_NODE
    self.transfers: dict[str, Transfer] = {}  # of the latest push, by message id
    self._app = app
    self._run = Run.create_empty(_RUN_ID)
    self._contexts = {
      _FIRST_CLIENT_NODE + client: Context(
        run_id=_RUN_ID,
        node_id=_FIRST_CLIENT_NODE + client,
        node_config={"partition-id": client, "num-partitions": num_clients},
        state=RecordDict(),
        run_config={},
      )
      for client in range(num_clients)
    }
    self._replies: dict[str, Message] = {}

  @property
  def run(self) -> Run:
    """The run that this grid operates in."""
    return self._run

  def set_run(self, run: Run) -> None:
    """Sets the run that this grid operates in."""
    self._run = run

  def create_message(
    self,
    content: RecordDict,
    message_type: str,
    dst_node_id: int,
    group_id: str,
    ttl: float | None = None,
  ) -> Message:
    """A message to one node; Flower deprecates this for the Message constructor."""
    return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

  def get_node_ids(self) -> list[int]:
    """Node ids; the node of client k is the k-th, in every run."""
    return list(self._contexts)

  def push_messages(self, messages: Iterable[Message]) -> list[str]:
    """Delivers the messages, runs their clients, and keeps the replies.

    Args:
      messages: messages to nodes of this grid.

    Returns:
      Message ids, to pull the replies with.

    Raises:
      ValueError: a message to an unknown node.
    """
    self.transfers = {}
    messages = list(messages)
    for message in messages:
      if message.metadata.dst_node_id not in self._contexts:
        node, known = message.metadata.dst_node_id, list(self._contexts)
        raise ValueError(f"message to node {node}: expected one of {known}")
    return self._deliver(messages)

  def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
    """Replies to the given messages, each once."""
    return [self._replies.pop(i) for i in list(message_ids) if i in self._replies]

  def send_and_receive(
    self, messages: Iterable[Message], *, timeout: float | None = None
  ) -> list[Message]:
    """Delivers the messages and returns their replies; `timeout` is ignored, see the class."""
    return self.pull_messages(self.push_messages(messages))

  def _deliver(self, messages: list[Message]) -> list[str]:
    """Answers the messages; returns their ids."""
    requests, sizes = [], []
    arrays: dict[str, InflatableObject] = {}
    for message in messages:
      received, size = _travel(message, arrays)
      # The sender learns the id, as on the network.
      message.metadata.__dict__["_message_id"] = received.metadata.message_id
      requests.append((received, self._contexts[message.metadata.dst_node_id]))
      sizes.append(size)
    ids = []
    for (received, _), down, answer in zip(requests, sizes, self._answers(requests), strict=True):
      if isinstance(answer, Exception):
        _LOG.info("node %d raised", received.metadata.dst_node_id, exc_info=answer)
        why = f"{type(answer).__name__}: {answer}"
        answer = Message(Error(CLIENT_RAISED, why), reply_to=received)
      reply, up = _travel(answer)
      ids.append(received.metadata.message_id)
      self._replies[ids[-1]], self.transfers[ids[-1]] = reply, Transfer(down, up)
    return ids

  def _answers(self, requests: list[tuple[Message, Context]]) -> Iterator[Message | Exception]:
    training = all(message.metadata.message_type == TRAIN for message, _ in requests)
    if training and isinstance(self._app, CohortApp):
      return self._app.answer_together(requests)
    return (self._answer(*request) for request in requests)

  def _answer(self, message: Message, context: Context) -> Message | Exception:
    try:
      reply = self._app(message, context)
      if not isinstance(reply, Message):
        raise TypeError(f"expected the app to return a Message; got {type(reply).__name__}")
    except UserError:
      raise  # of this process, which is to end: its text is not for the server
    except Exception as error:  # noqa: BLE001 - the error becomes the client's reply
      return error
    return reply


def _travel(
  message: Message, arrays: dict[str, InflatableObject] | None = None
) -> tuple[Message, int]:
  """The message as its receiver gets it, and the bytes it took.

  Args:
    message: what is sent.
    arrays: those that were received already, by id: equal ones are kept in memory once. Adds those
      of this message.
  """
  objects = serialized(message)
  size = sum(map(len, objects.values()))
  message_id = next(reversed(objects))  # parents come last
  known = {} if arrays is None else dict(arrays)
  received = inflate_object_from_contents(message_id, objects, objects=known)
  received.metadata.__dict__["_message_id"] = message_id
  if arrays is not None:
    arrays |= {key: value for key, value in known.items() if isinstance(value, Array)}
  return received, size
