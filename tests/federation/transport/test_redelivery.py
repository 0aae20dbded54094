"""Redelivery with Flower's own database tables, without a network."""

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import NOOP_FLWR_AID, SUPERLINK_NODE_ID
from flwr.supercore.constant import NOOP_FEDERATION_ID
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager

from afspl_jax.federation.transport.redelivery import RedeliveringState


@pytest.fixture
def state(tmp_path):
  database = str(tmp_path / "superlink.db")
  store = ObjectStoreFactory(database).store()
  state = RedeliveringState(database, NoOpFederationManager(), store)
  state.initialize()
  return state


@pytest.fixture
def nodes(state):
  made = [state.create_node(NOOP_FLWR_AID, "site", f"key {i}".encode(), 60.0) for i in (1, 2)]
  for node in made:
    state.activate_node(node, 60.0)
  return made


@pytest.fixture
def send(state):
  """Sends a node a message, and returns the id."""
  none = (None, None, None)
  run = state.create_run(*none, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, "flwr-serverapp")
  TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run, SUPERLINK_NODE_ID

  def sent(node, text):
    content = RecordDict({"config": ConfigRecord({"text": text})})
    message = Message(content, node, "train", group_id="1")
    message.metadata.__dict__["_message_id"] = message.object_id
    assert state.store_message_ins(message)
    return message.metadata.message_id

  return sent


def delivered(state, node):
  return [message.metadata.message_id for message in state.get_message_ins(node, limit=1)]


def test_an_unanswered_message_is_delivered_twice_and_then_the_next_one(state, nodes, send):
  one, other = nodes
  first, second = send(one, "first"), send(one, "second")
  assert delivered(state, one) == [first]
  assert delivered(state, other) == []  # only its own messages
  assert delivered(state, one) == [first]
  assert delivered(state, one) == [second]  # the first one is dropped
  assert delivered(state, one) == [second]
  assert delivered(state, one) == []


def test_an_answered_message_is_not_delivered_again(state, nodes, send):
  node, _ = nodes
  first, second = send(node, "first"), send(node, "second")
  (message,) = state.get_message_ins(node, limit=1)
  reply = Message(RecordDict(), reply_to=message)
  reply.metadata.__dict__["_message_id"] = reply.object_id
  assert message.metadata.message_id == first and state.store_message_res(reply)
  assert delivered(state, node) == [second]
