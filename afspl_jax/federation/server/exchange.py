"""Messages to sites, and their replies: in time, still due, or late."""

import time
from collections.abc import Hashable, Mapping
from typing import Generic, NamedTuple, TypeVar

from flwr.app import Message
from flwr.serverapp import Grid

To = TypeVar("To", bound=Hashable)  # names a receiver: a site's name or a node's id

POLL = 0.2  # seconds between looks for replies; Flower's own loop sleeps for 3


class Answer(NamedTuple):
  """The reply to a message, if it has come."""

  message: Message | None  # None: nothing yet, or it could not be sent
  seconds: float  # from sending to arrival
  sent: bool = True  # False: the transport did not take the message


class _Due(NamedTuple, Generic[To]):
  to: To
  round: int
  since: float  # on the monotonic clock


class Exchange(Generic[To]):
  """Sends messages to many receivers, and tracks the replies that have not come.

  A reply is matched by the id of its message, because Flower's own error replies come from the
  server's node.

  Args:
    grid: carries the messages.
    poll: seconds between looks for replies.
  """

  def __init__(self, grid: Grid, poll: float = POLL):
    self._grid, self._poll = grid, poll
    self._due: dict[str, _Due[To]] = {}  # by message id

  def due(self) -> dict[To, int]:
    """The receivers whose reply has not come, with the round of their message."""
    return {due.to: due.round for due in self._due.values()}

  def send(self, messages: Mapping[To, Message], round: int) -> set[To]:
    """Sends the messages; returns the receivers that could not be reached."""
    begin, unsent = time.monotonic(), set()
    ids = list(self._grid.push_messages(list(messages.values())))
    for to, message_id in zip(messages, ids or [None] * len(messages), strict=True):
      if message_id is None:
        unsent.add(to)
      else:
        self._due[message_id] = _Due(to, round, begin)
    return unsent

  def collect(self) -> list[tuple[To, int, Answer]]:
    """The replies that have come since the last call: receiver, round of the message, answer."""
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
    """Sends the messages, and waits until all have answered or the deadline has passed.

    Args:
      messages: by receiver.
      round: of these messages.
      deadline: seconds.

    Returns:
      An answer for each receiver, and the late answers to messages of earlier rounds.
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
