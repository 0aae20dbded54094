"""A server that deviates from the protocol. The sites and the messages are real.

The server holds all messages, and may change, keep or repeat any of them. What it cannot do is sign
for a site.
"""

import pytest
from flwr.app import Message, RecordDict

from afspl_jax.federation.client.client_app import SiteApp
from afspl_jax.federation.secure import crypto, messages
from afspl_jax.federation.secure.coordinator import Introduction
from afspl_jax.federation.secure.crypto import Session
from afspl_jax.federation.secure.identity import run_identities
from afspl_jax.federation.secure.members import Keys, member_of
from afspl_jax.federation.secure.site import SecureSite
from afspl_jax.federation.server.round_request import RoundFailed
from afspl_jax.federation.server.rounds import run_rounds
from tests.federation.least_squares import CLIENTS, LeastSquares
from tests.federation.secure.secure_runs import KINDS, TERMS, Recording, secured

VICTIM = 2  # the site whose update the server is after


class Lying(Recording):
  """Changes messages on their way to the sites; `changes` are pairs of stage and function."""

  changes = ()

  def push_messages(self, pushed):
    pushed = list(pushed)
    for message in pushed:
      for stage, change in self.changes:
        if message.metadata.message_type == KINDS[stage]:
          change(message.metadata.dst_node_id - 2, message.content)  # LocalGrid's ids begin at 2
    return super().push_messages(pushed)

  def replies_to(self, stage):
    return [
      r for r in self.replies if r.metadata.message_type == KINDS[stage] and not r.has_error()
    ]


def lied_to(run, *changes, masking=None, terms=TERMS):
  """Runs with sites that are lied to; returns the grid and why the round failed."""
  app = SiteApp(LeastSquares(), run.params, masking=masking or SecureSite(terms))
  grid = Lying(app, CLIENTS)
  grid.changes = changes
  with pytest.raises(RoundFailed) as failed:
    run_rounds(grid, secured(run, terms), CLIENTS)
  return grid, str(failed.value)


def introduced_as(change):
  """A change of the members that are introduced to every site but the victim."""

  def spoil(site, content):
    number, members = messages.read_introduction(content)
    session = Session(content["secure"]["session"], 1)
    if site != VICTIM:
      members = change(session, members)
    content["secure"] = messages.introduction_record(session, Introduction(number, members))

  return "shares", spoil


def servers_own(session, name="site_02", identity_of=None):
  """Keys of the server's, under a site's name, and signed by a key of the server's."""
  identity = (identity_of or run_identities())(name)
  pair = [crypto.private_key(bytes([i]) * 16, session) for i in range(2)]
  return member_of(identity, session, Keys(*map(crypto.public_bytes, pair), b"c" * 32))


def replaced(members, new):
  return [new if member.site == new.site else member for member in members]


def sent(grid, stage, asked):
  """The replies to messages of a stage, in order of their receivers."""
  out = [
    Message(RecordDict({messages.SECURE: record}), node, KINDS[stage], group_id="1")
    for node, record in asked
  ]
  replies = {r.metadata.src_node_id: r for r in grid.send_and_receive(out)}
  return [replies[node] for node, _ in asked]
