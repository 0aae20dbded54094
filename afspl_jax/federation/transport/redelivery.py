"""Delivers a message again that was lost on its way to a site.

Flower marks a message as delivered before its answer to the SuperNode is on its way. If the
SuperLink or the connection dies in between, the message is lost, and the round waits for the site
until its deadline. But a SuperNode works on one message at a time, and asks for the next one only
after it has answered. So if it asks again, it does not have a message that it has not answered.
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
  """The SuperLink's table of messages, which delivers an unanswered message a second time.

  Only a second time: a node that cannot process a message, for example because its run has ended,
  then gets the messages behind it. If a node did have the message and answers twice, Flower keeps
  the first answer. If a node has confirmed a message, Flower has deleted its arrays, and the node
  has lost them, for example because it was restarted: Flower then tells the server at once that the
  message is unavailable, instead of letting it wait until its deadline.
  """

  def __init__(self, *args: Any):
    super().__init__(*args)
    self._redelivered: set[str] = set()  # message ids

  def get_message_ins(
    self, node_id: int, limit: int | None, *, run_id: int | None = None
  ) -> list[Message]:
    """Returns the messages for a node that asks for them."""
    lost = (
      update(MessageIns)
      .where(
        MessageIns.dst_node_id == uint64_to_int64(node_id),
        MessageIns.delivered_at != "",
        ~exists().where(MessageRes.reply_to_message_id == MessageIns.message_id),
        MessageIns.message_id.not_in(self._redelivered),
      )
      .values(delivered_at="")
    )
    with self.session() as session:
      self._redelivered |= set(session.scalars(lost.returning(MessageIns.message_id)))
    return super().get_message_ins(node_id, limit, run_id=run_id)


def enable_redelivery() -> None:
  """Makes the SuperLink that this process is about to start redeliver lost messages."""
  linkstate_factory.SqlLinkState = RedeliveringState
