"""The SuperNode's program over Flower's own state; test_deployment.py has the whole SuperNode."""

import asyncio

import httpx
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import Status, SubStatus
from flwr.supercore.constant import TaskType
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.nodestate import NodeStateFactory
from starlette.responses import Response

from afspl_jax.federation.transport import task_gate
from afspl_jax.federation.transport.task_gate import TaskGate

RUN = 7


@pytest.fixture
def store():
  return ObjectStoreFactory().store()


@pytest.fixture
def state():
  state = NodeStateFactory(objectstore_factory=ObjectStoreFactory()).state()
  state.set_node_id(1)
  return state


@pytest.fixture
def message():
  TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN, 1
  message = Message(RecordDict({"config": ConfigRecord({"x": 1})}), 1, "train")
  message.metadata.__dict__["_message_id"] = message.object_id
  return message


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(task_gate, "_EAGER", 0.2)
  monkeypatch.setattr(task_gate, "_EAGER_POLL", 0.01)
  monkeypatch.setattr(task_gate, "_HOLD", 0.1)
  monkeypatch.setattr(task_gate, "_POLL", 0.01)


def statuses(state):
  return {task.status.sub_status or task.status.status for task in state.get_tasks()}


def fetches(outcomes):
  """Stands in for Flower's function: for each call, whether there is a message and is whole."""

  def fetch(*, receive, state, object_store):
    there, whole = outcomes.pop(0) if outcomes else (False, False)
    if not there or (received := receive()) is None:
      return None
    state.create_task(TaskType.CLIENT_APP, RUN)
    state.store_message(received[0])
    return RUN if whole else None

  return fetch


def test_the_task_of_a_message_that_is_lost_on_the_way_ends(state, store, message):
  gate = TaskGate(fetches([(True, False)]))
  assert gate.fetch(receive=lambda: (message, None), state=state, object_store=store) is None
  assert statuses(state) == {SubStatus.FAILED}
  assert not state.get_messages_legacy()


def test_after_a_message_the_next_one_is_asked_for_soon(state, store, message):
  none, whole = (False, False), (True, True)
  outcomes = [none, whole, none, none, whole]
  gate = TaskGate(fetches(outcomes))
  fetch = lambda: gate.fetch(receive=lambda: (message, None), state=state, object_store=store)  # noqa: E731
  assert fetch() is None  # Flower sleeps before it asks again
  assert fetch() == RUN
  assert fetch() == RUN and not outcomes
  assert fetch() is None  # after a while


def test_a_request_for_a_task_waits_until_a_message_is_whole(state, store, message):
  served = []

  async def app(scope, receive, send):
    served.append(scope["path"])
    await Response(b"a task")(scope, receive, send)

  gate = TaskGate(fetches([(True, True)]))

  async def requests():
    transport = httpx.ASGITransport(gate.guard(app))
    async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
      answers = [(await client.post("/v1/runtime/acquire-task")).content]
      answers.append((await client.post("/v1/runtime/push-messages")).content)
      waiting = asyncio.create_task(client.post("/v1/runtime/acquire-task"))
      await asyncio.sleep(0.02)
      assert not waiting.done()
      gate.fetch(receive=lambda: (message, None), state=state, object_store=store)
      answers.append((await waiting).content)
      return answers

  assert asyncio.run(requests()) == [b"", b"a task", b"a task"]
  assert served == ["/v1/runtime/push-messages", "/v1/runtime/acquire-task"]
  assert statuses(state) == {Status.PENDING}
