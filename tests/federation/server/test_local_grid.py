import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from afspl_jax.federation.protocol.wire import record_bytes
from afspl_jax.federation.transport.local_grid import LocalGrid


def content(values):
  return RecordDict({"arrays": ArrayRecord({"x": Array(np.asarray(values, np.float32))})})


def values(message):
  return message.content["arrays"]["x"].numpy().tolist()


def app_of(train):
  app = ClientApp()
  app.train()(train)
  return app


def doubler(message, context):
  x = message.content["arrays"]["x"].numpy()
  return Message(content(2 * x + context.node_config["partition-id"]), reply_to=message)


def send(grid, clients, record):
  nodes = grid.get_node_ids()
  return [Message(record, nodes[k], "train", group_id="1") for k in clients]


def test_every_client_answers_its_own_message():
  grid = LocalGrid(app_of(doubler), 3)
  messages = send(grid, [2, 0], content([1]))
  replies = grid.send_and_receive(messages)
  assert [values(r) for r in replies] == [[4], [2]]
  for message, reply in zip(messages, replies, strict=True):
    assert reply.metadata.reply_to_message_id == message.metadata.message_id
    assert reply.metadata.src_node_id == message.metadata.dst_node_id


def test_nothing_is_shared_by_reference():
  kept = []

  def vandal(message, context):
    seen = values(message)
    message.content["arrays"]["x"] = Array(np.full(1, 99, np.float32))
    reply = Message(content(seen), reply_to=message)
    kept.append(reply)
    return reply

  grid = LocalGrid(app_of(vandal), 2)
  record = content([1])
  replies = grid.send_and_receive(send(grid, [0, 1], record))
  assert [values(r) for r in replies] == [[1], [1]]  # client 1 did not see client 0's change
  assert record["arrays"]["x"].numpy().tolist() == [1]
  kept[0].content["arrays"]["x"] = Array(np.full(1, 77, np.float32))
  assert values(replies[0]) == [1]


def test_a_raising_client_replies_with_its_reason_and_the_others_are_served():
  def train(message, context):
    if context.node_config["partition-id"] == 1:
      raise ZeroDivisionError("no pictures at this site")
    return doubler(message, context)

  grid = LocalGrid(app_of(train), 3)
  replies = grid.send_and_receive(send(grid, [0, 1, 2], content([1])))
  assert [r.has_error() for r in replies] == [False, True, False]
  assert replies[1].error.reason == "ZeroDivisionError: no pictures at this site"
  assert replies[1].error.code == 2


@pytest.mark.parametrize("answer", [None, 3])
def test_a_client_that_returns_no_message_replies_with_an_error(answer):
  grid = LocalGrid(app_of(lambda message, context: answer), 1)
  (reply,) = grid.send_and_receive(send(grid, [0], content([1])))
  assert reply.has_error()


def test_an_unknown_action_is_an_error_reply():
  grid = LocalGrid(ClientApp(), 1)
  (reply,) = grid.send_and_receive(send(grid, [0], content([1])))
  assert "No train function" in reply.error.reason


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_the_user_can_stop_a_client(stop):
  def train(message, context):
    raise stop

  grid = LocalGrid(app_of(train), 1)
  with pytest.raises(stop):
    grid.send_and_receive(send(grid, [0], content([1])))


def test_node_ids_are_the_same_in_every_run():
  first, second = LocalGrid(app_of(doubler), 4), LocalGrid(app_of(doubler), 4)
  assert first.get_node_ids() == second.get_node_ids() == sorted(set(first.get_node_ids()))


def test_bytes_are_counted_both_ways_for_each_message():
  grid = LocalGrid(app_of(doubler), 2)
  small = grid.send_and_receive(messages := send(grid, [0], content(np.arange(10))))
  down, up = grid.transfers[messages[0].metadata.message_id]
  assert (down, up) == (record_bytes(messages[0]), record_bytes(small[0]))
  large = send(grid, [1], content(np.arange(1010)))
  grid.send_and_receive(large)
  transfer = grid.transfers[large[0].metadata.message_id]
  assert 4000 <= transfer.down - down <= 4010 and 4000 <= transfer.up - up <= 4010


def test_a_reply_is_pulled_once():
  grid = LocalGrid(app_of(doubler), 1)
  ids = grid.push_messages(send(grid, [0], content([1])))
  assert len(grid.pull_messages(ids)) == 1
  assert grid.pull_messages(ids) == []


def test_a_message_to_an_unknown_node_is_rejected():
  grid = LocalGrid(app_of(doubler), 1)
  with pytest.raises(ValueError, match=r"node 77: expected one of \[2\]"):
    grid.send_and_receive([Message(content([1]), 77, "train")])


def test_a_clients_state_stays_with_it_between_rounds():
  def count(message, context):
    seen = [*values_of(context.state), 1.0]
    context.state["arrays"] = content(seen)["arrays"]
    return Message(content(seen), reply_to=message)

  def values_of(state):
    return state["arrays"]["x"].numpy().tolist() if "arrays" in state else []

  grid = LocalGrid(app_of(count), 2)
  for _ in range(2):
    grid.send_and_receive(send(grid, [0], content([1])))
  replies = grid.send_and_receive(send(grid, [0, 1], content([1])))
  assert [len(values(r)) for r in replies] == [3, 1]


def test_an_app_that_can_gets_the_training_messages_of_a_push_in_one_call():
  class Together(ClientApp):
    def answer_together(self, requests):
      seen.append([context.node_config["partition-id"] for _, context in requests])
      for message, context in requests:
        client = context.node_config["partition-id"]
        yield OSError("disk full") if client == 1 else doubler(message, context)

  seen, app = [], Together()
  app.query("hello")(doubler)
  grid = LocalGrid(app, 4)
  replies = grid.send_and_receive(send(grid, [3, 1, 0], content([1])))
  assert seen == [[3, 1, 0]]
  assert [reply.has_error() for reply in replies] == [False, True, False]
  assert [values(replies[0]), values(replies[2])] == [[5], [2]]
  assert replies[1].error.reason == "OSError: disk full"
  hello = Message(content([1]), grid.get_node_ids()[0], "query.hello", group_id="1")
  (reply,) = grid.send_and_receive([hello])
  assert values(reply) == [2]
  assert len(seen) == 1  # only training


def test_nobody_is_asked_when_one_of_the_nodes_is_unknown():
  seen = []

  def train(message, context):
    seen.append(context.node_config["partition-id"])
    return doubler(message, context)

  grid = LocalGrid(app_of(train), 2)
  messages = [*send(grid, [0], content([1])), Message(content([1]), 77, "train")]
  with pytest.raises(ValueError, match="node 77"):
    grid.push_messages(messages)
  assert seen == []
