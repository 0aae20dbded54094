"""Messages to sites and their replies: which come by a deadline, are still due, or are late."""

import time
from collections.abc import Hashable, Mapping
from typing import Generic, NamedTuple, TypeVar

from flwr.app import Message
from flwr.serverapp import Grid

To = TypeVar("To", bound=Hashable)  # what the asker calls those whom it asks

POLL = 0.2  # seconds between looks for replies; Flower's own loop sleeps for 3


class Answer(NamedTuple):
  """What came back for a message."""

  message: Message | None  # None: nothing yet, or it could not be sent
  seconds: float  # from sending to arrival
  sent: bool = True  # False: the transport did not take the message


class _Due(NamedTuple, Generic[To]):
  to: To
  round: int
  since: float  # on the monotonic clock


class Exchange(Generic[To]):
  """Asks many at once, and keeps account of who has not answered.

  Replies are told apart by the message they answer: Flower's own error replies come from the
  server's node.

  Args:
    grid: carries the messages.
    poll: seconds between looks for replies.
  """

  def __init__(self, grid: Grid, poll: float = POLL):
    self._grid, self._poll = grid, poll
    self._due: dict[str, _Due[To]] = {}  # by message id

  def due(self) -> dict[To, int]:
    """Those whose answer has not come, with the round it is of."""
    return {due.to: due.round for due in self._due.values()}

  def send(self, messages: Mapping[To, Message], round: int) -> set[To]:
    """Sends each its message; returns those to whom it could not be."""
    begin, unsent = time.monotonic(), set()
    ids = list(self._grid.push_messages(list(messages.values())))
    for to, message_id in zip(messages, ids or [None] * len(messages), strict=True):
      if message_id is None:
        unsent.add(to)
      else:
        self._due[message_id] = _Due(to, round, begin)
    return unsent

  def collect(self) -> list[tuple[To, int, Answer]]:
    """What has come since the last look: from whom, of which round, and the answer."""
    if not self._due:
      return []
    out = []
    for message in self._grid.pull_messages(list(self._due)):
      due = self._due.pop(message.metadata.reply_to_message_id, None)
      if due is not None:
        out.append((due.to, due.round, Answer(message, time.monotonic() - due.since)))
    return out

  def ask(
    self, messages: Mapping[To, Message], round: int, deadline: float
  ) -> tuple[dict[To, Answer], list[tuple[To, int, Answer]]]:
    """Sends each its message, and waits until all have answered or the deadline has passed.

    Args:
      messages: by whom they are for.
      round: of these messages.
      deadline: seconds.

    Returns:
      An answer of each, and the answers to earlier rounds that came meanwhile: they are too late.
    """
    begin, late = time.monotonic(), []
    unsent = self.send(messages, round)
    answers: dict[To, Answer] = {}
    while True:
      for to, of, answer in self.collect():
        if of == round and to in messages:
          answers[to] = answer
        else:
          late.append((to, of, answer))
      seconds = time.monotonic() - begin
      if len(answers) + len(unsent) == len(messages) or seconds >= deadline:
        break
      time.sleep(min(self._poll, deadline - seconds))
    for to in messages:
      answers.setdefault(to, Answer(None, seconds, to not in unsent))
    return answers, late
