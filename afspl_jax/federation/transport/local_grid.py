"""Flower's Grid inside this process: no Ray, no sockets, one copy of the frozen weights."""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from afspl_jax.errors import UserError
from afspl_jax.federation.contracts import CLIENT_RAISED
from afspl_jax.federation.protocol.wire import TRAIN, serialized
from afspl_jax.federation.transport.flower_private import (
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
  """Runs a ClientApp in this process, one message after the other.

  Every message and reply is serialized and deserialized by Flower's own wire objects, so nothing
  is shared by reference and bytes are those of a network. A client's exception becomes the error
  reply that a SuperNode would send; UserError, KeyboardInterrupt and SystemExit pass through.

  A client that hangs hangs the caller: `timeout` cannot be enforced in one process and is
  ignored. Deadlines are for the networked roles.

  Args:
    app: of every client.
    num_clients: nodes of this grid.
    announce: is told which clients a push asks to train, before the first of them is asked.
  """

  def __init__(
    self,
    app: ClientApp,
    num_clients: int,
    announce: Callable[[Sequence[int]], None] = lambda clients: None,
  ):
    # A Message takes its run and sender from the process.
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, _RUN_ID, _SERVER_NODE
    self.transfers: dict[str, Transfer] = {}  # of the latest push, by message id
    self._app, self._announce = app, announce
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
    """Delivers every message, runs its client, and keeps the reply.

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
    training = [m.metadata.dst_node_id for m in messages if m.metadata.message_type == TRAIN]
    if training:
      self._announce([node - _FIRST_CLIENT_NODE for node in training])
    return [self._deliver(message) for message in messages]

  def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
    """Replies to the given messages, each once."""
    return [self._replies.pop(i) for i in list(message_ids) if i in self._replies]

  def send_and_receive(
    self, messages: Iterable[Message], *, timeout: float | None = None
  ) -> list[Message]:
    """Delivers the messages and returns their replies; `timeout` is ignored, see the class."""
    return self.pull_messages(self.push_messages(messages))

  def _deliver(self, message: Message) -> str:
    node = message.metadata.dst_node_id
    received, down = _travel(message)
    message_id = received.metadata.message_id
    message.metadata.__dict__["_message_id"] = message_id  # the sender learns it, as on the network
    try:
      reply, up = _travel(self._app(received, self._contexts[node]))
    except UserError:
      raise  # of this process, which is to end: what a client must not hear of is in it
    except Exception as error:  # noqa: BLE001 - whatever a client raises is its reply
      _LOG.info("node %d raised", node, exc_info=error)
      why = Error(CLIENT_RAISED, f"{type(error).__name__}: {error}")
      reply, up = _travel(Message(why, reply_to=received))
    self._replies[message_id] = reply
    self.transfers[message_id] = Transfer(down, up)
    return message_id


def _travel(message: Message) -> tuple[Message, int]:
  """The message as its receiver sees it, and the bytes it took."""
  objects = serialized(message)
  size = sum(map(len, objects.values()))
  message_id = next(reversed(objects))  # parents come last
  received = inflate_object_from_contents(message_id, objects)
  received.metadata.__dict__["_message_id"] = message_id
  return received, size
