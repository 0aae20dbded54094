"""What a site's executor does with a message; test_deployment.py has real SuperNodes."""

import threading
import time
from contextlib import closing, nullcontext
from types import SimpleNamespace

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity

from afspl_jax.errors import UserError
from afspl_jax.federation.contracts import CLIENT_RAISED
from afspl_jax.federation.transport import site_executor
from afspl_jax.federation.transport.connection import FlowerService
from afspl_jax.federation.transport.supernode import SuperNode


class Connection(closing):
  """A connection to a SuperNode without a process."""

  def __init__(self, node):
    super().__init__(self)
    self.node = node

  def close(self):
    pass


class Service(FlowerService):
  """The address of a SuperNode without a process."""

  def __init__(self, node, address="nowhere"):
    super().__init__(address, "secret", None)
    object.__setattr__(self, "node", node)

  def runtime_client(self, *_, **__):
    return Connection(self.node)


class Node(SuperNode):
  """A SuperNode without a process: hands out its messages, one after the other."""

  def __init__(self, site, messages, stopped):
    self.site, self.messages, self._stopped = site, list(messages), stopped
    self.service = Service(self)
    self.replies = []

  @property
  def child(self):
    return SimpleNamespace(stop=lambda: self._stopped.append(self.site))

  def supervise(self):
    pass


@pytest.fixture
def answer(monkeypatch):
  """Answers the messages of nodes until a condition holds; returns the names of stopped nodes."""
  stopped = []
  TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1

  def acquire(client, task_type):
    return (1, "token") if client.node.messages else (0, "")

  def pull(client):
    message = client.node.messages.pop(0)
    if isinstance(message, Exception):
      raise message
    if callable(message):
      message()
    return Message(RecordDict(), 1, "train"), Context(1, 2, {}, RecordDict(), {}), None, None

  monkeypatch.setattr(site_executor, "acquire_task", acquire)
  monkeypatch.setattr(site_executor, "send_heartbeats", lambda *_: nullcontext())
  monkeypatch.setattr(site_executor, "pull_task_input", pull)
  monkeypatch.setattr(
    site_executor, "push_message", lambda client, reply, _: client.node.replies.append(reply)
  )
  monkeypatch.setattr(site_executor, "push_task_output", lambda *_: None)
  monkeypatch.setattr(site_executor, "_PAUSE", 0.01)

  def answered(app, nodes, until):
    end = time.monotonic() + 20
    site_executor.answer_messages(app, nodes, lambda: until() or time.monotonic() > end, 0.01)
    assert until()
    return stopped

  answered.stopped = stopped
  return answered


class Echo(ClientApp):
  def __call__(self, message, context):
    return Message(RecordDict(), reply_to=message)


def test_a_message_is_not_answered_if_the_site_cannot_log_it(answer):
  class FullDiskApp(ClientApp):
    def __call__(self, message, context):
      raise UserError("wire.jsonl: no space left")

  node = Node("site_0", ["message"], answer.stopped)
  with pytest.raises(UserError, match="no space left"):
    answer(FullDiskApp(), [node], lambda: False)
  assert not node.replies


def test_an_exception_of_the_app_becomes_an_error_reply(answer):
  class Raising(ClientApp):
    def __call__(self, message, context):
      raise ValueError("no data")

  node = Node("site_0", ["message"], answer.stopped)
  answer(Raising(), [node], lambda: node.replies)
  (reply,) = node.replies
  assert (reply.error.code, reply.error.reason) == (CLIENT_RAISED, "ValueError: no data")


def test_a_supernode_that_does_not_respond_delays_no_other_one(answer):
  woken = threading.Event()
  stuck = Node("site_0", [woken.wait], answer.stopped)
  other = Node("site_1", ["message"] * 3, answer.stopped)
  answer(Echo(), [stuck, other], lambda: len(other.replies) == 3 and (woken.set() or True))
  assert len(other.replies) == 3


def test_a_supernode_whose_message_cannot_be_fetched_is_replaced(answer):
  node = Node("site_0", [RuntimeError("no arrays"), "message"], answer.stopped)
  assert answer(Echo(), [node], lambda: node.replies) == ["site_0"]


def test_a_supernode_that_was_replaced_meanwhile_is_not_stopped(answer):
  def die():
    node.service = Service(node, "elsewhere")
    raise RuntimeError("connection refused")

  node = Node("site_0", [die, "message"], answer.stopped)
  assert answer(Echo(), [node], lambda: node.replies) == []
