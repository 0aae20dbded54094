"""Messages that were handed out and never arrived, handed out again.

Flower takes a message for delivered before its answer to the SuperNode is on its way. If the
SuperLink or the connection dies in between, nobody has the message, and a round waits for the site
until its deadline. But a SuperNode works on one message at a time, and asks for the next when it
has answered: what it was given before and did not answer, it does not have.
"""

from typing import Any

from flwr.app import Message
from sqlalchemy import exists, update

from afspl_jax.federation.transport.flower_private import (
  MessageIns,
  MessageRes,
  SqlLinkState,
  linkstate_factory,
  uint64_to_int64,
)


class RedeliveringState(SqlLinkState):
  """The SuperLink's messages, each handed out once more to a node that asks without an answer.

  Once, so that a node that cannot take a message, as of a run that was ended, gets to the others.
  Of a node that did have it, and so answers twice, Flower keeps the first answer.
  """

  def __init__(self, *args: Any):
    super().__init__(*args)
    self._again: set[str] = set()  # ids

  def get_message_ins(
    self, node_id: int, limit: int | None, *, run_id: int | None = None
  ) -> list[Message]:
    """Messages for a node that asks for them."""
    lost = (
      update(MessageIns)
      .where(
        MessageIns.dst_node_id == uint64_to_int64(node_id),
        MessageIns.delivered_at != "",
        ~exists().where(MessageRes.reply_to_message_id == MessageIns.message_id),
        MessageIns.message_id.not_in(self._again),
      )
      .values(delivered_at="")
    )
    with self.session() as session:
      self._again |= set(session.scalars(lost.returning(MessageIns.message_id)))
    return super().get_message_ins(node_id, limit, run_id=run_id)


def install() -> None:
  """Has this process's SuperLink, which is yet to start, redeliver."""
  linkstate_factory.SqlLinkState = RedeliveringState
