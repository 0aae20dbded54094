"""A SuperNode that hands out a message only when all of it has arrived.

Flower creates the task of a message before it has fetched the message's arrays. An executor that
acquires such a task waits for the arrays. If the run ends meanwhile, the SuperLink rejects the
request for them, and Flower does not end the task: the executor would wait for more than an hour.

Here a request for a task is held back until a message is whole. This also tells the executor about
a message at once, without asking ten times a second. And where Flower asks the SuperLink for the
next message every 3 s, this one asks twice a second for a while after each message.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

from flwr.app import Message
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from afspl_jax.federation.transport.flower_private import Status, SubStatus

_ACQUIRE_TASK = "/v1/runtime/acquire-task"
_HOLD = 2.0  # seconds that a request for a task is held back; a SuperNode that ends waits as long
_POLL = 0.05  # seconds
_EAGER = 10.0  # seconds after a message in which the next one is expected soon
_EAGER_POLL = 0.5  # seconds
_NO_TASK = b""  # an empty AcquireTaskResponse


class TaskGate:
  """Knows whether the current message is whole.

  Args:
    fetch: Flower's function that fetches the next message and creates its task. It returns the run,
      or None if there is no message or if it is lost on the way.
  """

  def __init__(self, fetch: Callable[..., int | None]):
    self._fetch = fetch
    self._whole = threading.Event()
    self._eager_until = 0.0  # on the monotonic clock

  def fetch(self, **arguments: Any) -> int | None:
    """Fetches the next message as Flower does, soon after the last one by asking several times.

    Args:
      arguments: of Flower's function.

    Returns:
      The run, or None if there is no message.
    """
    self._whole.clear()
    run = self._fetch_or_forget(**arguments)
    while run is None and time.monotonic() < self._eager_until:
      time.sleep(_EAGER_POLL)
      run = self._fetch_or_forget(**arguments)
    if run is not None:
      self._whole.set()
    return run

  def _fetch_or_forget(self, *, receive: Callable[[], Any], **others: Any) -> int | None:
    """Fetches the next message; ends its task if the message is lost on the way."""
    received: list[Message] = []

    def receive_and_remember() -> Any:
      answer = receive()
      if answer is not None:
        received.append(answer[0])
      return answer

    run = self._fetch(receive=receive_and_remember, **others)
    if received:
      self._eager_until = time.monotonic() + _EAGER
      if run is None:
        _forget(received[0], others["state"], others["object_store"])
    return run

  def guard(self, app: ASGIApp) -> ASGIApp:
    """Returns an app that serves requests as the given one, those for a task when it is whole."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
      is_held = scope["type"] == "http" and scope["path"] == _ACQUIRE_TASK
      if is_held and not await self._is_whole():
        await Response(_NO_TASK, media_type="application/protobuf")(scope, receive, send)
      else:
        await app(scope, receive, send)

    return guarded

  async def _is_whole(self) -> bool:
    """Returns whether a message is whole, as soon as one is or after a while."""
    end = time.monotonic() + _HOLD
    while not self._whole.is_set() and time.monotonic() < end:
      await asyncio.sleep(_POLL)
    return self._whole.is_set()


def _forget(message: Message, state: Any, store: Any) -> None:
  """Ends the task of a message that is lost, and drops what has arrived of it."""
  reason = "the run ended while its message was on the way"
  for task in state.get_tasks(run_ids=[message.metadata.run_id], statuses=[Status.PENDING]):
    state.finish_task(task.task_id, SubStatus.FAILED, reason)
  state.delete_messages(message_ids=[message.metadata.message_id])
  store.delete(message.metadata.message_id)
