"""Messages that do not follow the protocol: the server rejects a site's, a site the server's."""

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, Message

from afspl_jax.federation.client.client_app import SiteApp
from afspl_jax.federation.protocol import wire
from afspl_jax.federation.secure import messages
from afspl_jax.federation.secure.coordinator import Introduction
from afspl_jax.federation.secure.crypto import Session
from afspl_jax.federation.secure.site import SecureSite
from afspl_jax.federation.server.round_request import RoundFailed
from afspl_jax.federation.server.rounds import run_rounds
from tests.federation.least_squares import CLIENTS, LeastSquares, init_params, reference
from tests.federation.secure.secure_runs import (
  KINDS,
  SIGNED,
  STEP,
  TERMS,
  Recording,
  distance,
  run_with,
  secured,
  spoilt,
  terms_with,
)


def cut(name):
  def spoil(reply):
    record = reply.content["secure"]
    record[name] = record[name][:-1]

  return spoil


def changed(name):
  def spoil(reply):
    record = reply.content["secure"]
    record[name] = bytes(len(record[name]))

  return spoil


def extra(reply):
  reply.content["secure"]["note"] = "hello"


def plain_update(reply):
  reply.content["arrays"] = wire.pack(init_params())


def shorter(reply):
  masked = reply.content["arrays"]["masked"].numpy()
  reply.content["arrays"]["masked"] = Array(masked[:-1])


@pytest.mark.parametrize(
  ("stage", "spoil", "status"),
  [
    ("keys", cut("keys"), "rejected: keys: secure: keys: expected 96 bytes; got 95"),
    ("keys", changed("keys"), "rejected: expected new keys; got another client's"),
    ("shares", cut("sealed"), "rejected: shares: secure: sealed: expected 144 bytes; got 143"),
    ("shares", extra, "rejected: shares: secure: expected {'sealed': 'bytes'}; got"),
    ("train", plain_update, "rejected: train: expected the one array 'masked'; got ['flat']"),
    ("train", shorter, "rejected: train: expected uint8 of shape ("),
    ("train", cut("signature"), "rejected: expected its signature over the clients that shared"),
    ("keys", cut("signature"), "rejected: expected keys that its identity key signed; got others"),
    ("keys", changed("identity"), "rejected: expected keys that its identity key signed"),
    ("confirm", cut("signature"), "rejected: expected its signature over the survivors; got an"),
    ("confirm", extra, "rejected: confirm: secure: expected {'signature': 'bytes'}; got"),
    ("unmask", cut("shares"), "rejected: unmask: secure: shares: expected 64 bytes; got 63"),
    ("unmask", changed("shares"), "rejected: it gave another share than it was given"),
  ],
)
def test_what_is_not_agreed_on_is_rejected_and_the_others_are_summed(plan, stage, spoil, status):
  run = plan("secure", rounds=1)
  terms = terms_with(stage)
  _, params = run_with(run, spoilt(run, KINDS[stage], spoil, terms=terms), terms)
  found = {line["client"]: line["status"] for line in run.folder.clients()}
  assert found.pop("site_02").startswith(status)
  assert set(found.values()) == {"ok"}
  counted = range(CLIENTS) if stage in ("confirm", "unmask") else [0, 1, 3]
  assert distance(params, reference(1, lambda round: counted)) < STEP


def test_numbers_that_cannot_be_a_sum_end_the_round(plan):
  def rubbish(reply):
    size = reply.content["arrays"]["masked"].numpy().size
    reply.content["arrays"]["masked"] = Array(np.arange(size, dtype=np.uint8))

  run = plan("secure", rounds=1, retries=0)
  with pytest.raises(RoundFailed, match="numbers that cannot be: a client sent what it should not"):
    run_with(run, spoilt(run, "train", rubbish))


# A server that asks for something else.


class Tampering(Recording):
  """Changes what a kind of message asks of client 2."""

  kind, change = "", staticmethod(lambda content: None)

  def push_messages(self, messages):
    messages = list(messages)
    for message in messages:
      if message.metadata.message_type == self.kind and message.metadata.dst_node_id == 4:
        self.change(message.content)
    return super().push_messages(messages)


def numbers(*clients):
  return np.array(clients, "<u4").tobytes()


def without_secure(content):
  del content["secure"]


def setting(**values):
  def change(content):
    content["secure"] = ConfigRecord({**content["secure"], **values})

  return change


def members(change):
  """Introduces other members."""

  def spoil(content):
    number, found = messages.read_introduction(content)
    session = Session(content["secure"]["session"], 1)
    content["secure"] = messages.introduction_record(session, Introduction(number, change(found)))

  return spoil


def later_round(content):
  content["config"] = ConfigRecord({**content["config"], "round": 2})


@pytest.mark.parametrize(
  ("stage", "change", "why"),
  [
    ("train", without_secure, "sends only masked updates"),
    ("train", setting(session=bytes(16)), "expected the session that this site has keys of"),
    ("train", later_round, "expected round 1 of the session; got 2"),
    ("train", setting(sealed=bytes(144)), "the text that its sender sealed"),
    ("train", setting(peers=numbers(0, 1), sealed=bytes(96)), "of the neighbours that shared; got"),
    ("train", setting(shared=numbers(0, 1, 2)), "of the neighbours that shared; got [0, 1, 3]"),
    (
      "train",
      setting(shared=numbers(2, 3), peers=numbers(3), sealed=bytes(48)),
      "expected at least 3 of 4 clients that share masks",
    ),
    ("train", setting(shared=numbers(0, 1, 3)), "expected this client among those that shared"),
    ("train", setting(shared=numbers(0, 1, 2, 3, 4)), "expected this client among those that sh"),
    ("train", setting(shared=numbers(2, 0, 1)), "in order, each once"),
    ("train", setting(peers=numbers(1, 0), sealed=bytes(96)), "in order, each once"),
    ("shares", members(lambda m: m[:2]), "expected 3 to 16384 clients in the round"),
    ("shares", members(lambda m: m * 4097), "expected 3 to 16384 clients in the round"),
    ("shares", setting(number=1), "expected this site among the clients, with the keys that it"),
    ("shares", setting(number=-1), "expected this site among the clients"),
    ("shares", members(lambda m: m[::-1]), "expected the names of sites in order, each once"),
    ("shares", members(lambda m: [*m, m[-1]]), "expected the names of sites in order, each once"),
    ("shares", members(lambda m: [*m, m[-1]._replace(site="x\ny")]), "names of sites in order"),
    ("shares", members(lambda m: [*m, m[-1]._replace(site="z")]), "got one key twice"),
    ("shares", setting(keys=bytes(384)), "expected this site among the clients, with the keys"),
    ("shares", setting(keys=bytes(383)), "expected 384 bytes; got 383"),
    ("shares", setting(signatures=[b""]), "signatures: expected a list of 4 bytes; got 1"),
    ("shares", setting(sites=[1, 2, 3, 4]), "sites: expected a list of str; got 4"),
    ("confirm", setting(survivors=numbers(0, 1)), "expected survivors among those that shared"),
    ("confirm", setting(survivors=numbers(0, 2)), "expected at least 3 of 4 clients in the sum"),
    ("confirm", setting(survivors=numbers(0, 1, 2, 4)), "expected survivors among those that sha"),
    ("confirm", setting(signers=b"", signatures=[]), "signatures of all neighbours in the sum"),
    ("confirm", setting(signatures=[b""] * 2), "expected its signature over the sharers"),
    (
      "unmask",
      setting(signers=numbers(0, 1), signatures=[b"", b""]),
      "at least 3 survivors; got 2",
    ),
    ("unmask", setting(signers=numbers(0, 1, 2, 9), signatures=[b""] * 4), "at least 3 survivors"),
    ("unmask", setting(signatures=[b""] * 4), "site_00: expected its signature over the"),
    ("keys", setting(session=bytes(4)), "expected 16 bytes; got 4"),
    ("keys", setting(round="1"), "expected {'round': 'int', 'session': 'bytes'}"),
  ],
)
def test_a_site_rejects_what_its_own_settings_do_not_provide_for(plan, stage, change, why):
  run = plan("secure", rounds=1, retries=0)
  terms = SIGNED if stage in ("confirm", "unmask") else TERMS
  app = SiteApp(LeastSquares(), run.params, masking=SecureSite(terms))
  grid = Tampering(app, CLIENTS)
  grid.kind, grid.change = KINDS[stage], change
  run_rounds(grid, secured(run, terms), CLIENTS)
  status = {line["client"]: line["status"] for line in run.folder.clients()}
  assert status["site_02"].startswith(f"failed: {stage}: ") and why in status["site_02"]


def test_a_second_unmasking_and_an_old_session_are_rejected(plan):
  run = plan("secure", rounds=1)
  grid, _ = run_with(run)
  for kind, why in (("query.secure_unmask", "it after done"), ("query.secure_keys", "used befo")):
    (asked, *_) = [m for m in grid.asked if m.metadata.message_type == kind]
    again = Message(asked.content, asked.metadata.dst_node_id, kind, group_id="1")
    (reply,) = grid.send_and_receive([again])
    assert reply.has_error() and why in reply.error.reason
