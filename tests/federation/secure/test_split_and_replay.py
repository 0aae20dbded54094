"""A server splits the survivors, or replays a session: no site gives both secrets of another."""

import itertools

import pytest
from flwr.app import Message

from afspl_jax.federation.client.client_app import SiteApp
from afspl_jax.federation.contracts import PartyError
from afspl_jax.federation.secure import messages
from afspl_jax.federation.secure.coordinator import Introduction
from afspl_jax.federation.secure.crypto import Session
from afspl_jax.federation.secure.identity import run_identities
from afspl_jax.federation.secure.members import SURVIVORS, sign_set
from afspl_jax.federation.secure.party import Rules
from afspl_jax.federation.secure.site import SecureSite
from afspl_jax.federation.server.round_request import RoundFailed
from afspl_jax.federation.server.rounds import run_rounds
from tests.federation.least_squares import CLIENTS, LeastSquares
from tests.federation.secure.lying_server import VICTIM, Lying, replaced, sent
from tests.federation.secure.secure_round_in_memory import SecureRound, some_updates
from tests.federation.secure.secure_runs import KINDS, SIGNED, TERMS, Recording, secured


@pytest.mark.parametrize("rules", [Rules(0.6), Rules(0.55)])
@pytest.mark.parametrize("clients", [4, 5, 7, 10])
def test_no_split_of_the_survivors_gives_both_secrets_of_a_site(clients, rules):
  """All ways to show two sets, with one and without the victim, to two parts of the sites.

  A fifth of the sites collude: they sign both sets and give all of their shares. The set of all may
  be shown without signatures.
  """
  victim, colluding = 0, set(range(clients - clients // 5, clients))
  honest = [number for number in range(1, clients) if number not in colluding]
  for shown_all, signed in itertools.product(range(len(honest) + 1), (False, True)):
    secure = SecureRound(some_updates(clients), rules=rules).go("train")
    parties = [secure.parties[name] for name in secure.names]
    held = {number: parties[number]._held[victim] for number in range(clients)}
    shown = [
      (range(clients), [victim, *honest[:shown_all]], signed),
      (range(1, clients), honest[shown_all:], True),
    ]
    given = {share for number in colluding for share in held[number]}
    for survivors, to, sign in shown:
      agreed = {number: secure.server._agreed[number] for number in survivors}
      signatures = {
        n: parties[n].confirm(survivors, {of: agreed[of] for of in survivors if of != n})
        for n in to
        if sign
      }
      for number in colluding if sign else ():
        party = parties[number]
        signatures[number] = sign_set(party._identity, party._joint, SURVIVORS, survivors)
      for number in to:
        try:
          given.add(parties[number].unmask(signatures)[victim])
        except PartyError as why:
          assert "expected signatures of at least" in str(why) or not sign
    of_mask, of_own = (sum(held[n][kind] in given for n in range(clients)) for kind in (0, 1))
    assert min(of_mask, of_own) < secure.server._threshold


def test_signatures_over_two_sets_are_not_mixed(plan):
  run = plan("split", rounds=1, retries=0, clients_per_round=CLIENTS)

  def shown_without_victim(site, content):
    if site in (0, 1):
      session = Session(content["secure"]["session"], 1)
      _, agreed = messages.read_survivors(content)
      fewer = {number: agreed[number] for number in agreed if number != VICTIM}
      content["secure"] = messages.survivors_record(session, [0, 1, 3], fewer)

  class Forwarding(Lying):
    """Forwards all signatures, also those that do not fit."""

    def pull_messages(self, ids):
      replies = super().pull_messages(ids)
      self.signed = {
        r.metadata.src_node_id - 2: r.content["secure"]["signature"]
        for r in self.replies_to("confirm")
      }
      return replies

  app = SiteApp(LeastSquares(), run.params, masking=SecureSite(SIGNED))
  grid = Forwarding(app, CLIENTS)
  grid.changes = [("confirm", shown_without_victim)]
  with pytest.raises(RoundFailed, match="at least 3 signatures over the survivors; got 2"):
    run_rounds(grid, secured(run, SIGNED), CLIENTS)
  (opening, *_) = [m for m in grid.asked if m.metadata.message_type == KINDS["keys"]]
  session = Session(opening.content["secure"]["session"], 1)
  record = messages.signatures_record(session, grid.signed)
  ask = [(2 + i, record) for i in range(CLIENTS)]
  replies = sent(grid, "unmask", ask)
  assert all(reply.has_error() for reply in replies)
  said = [reply.error.reason for reply in replies]
  assert (
    "expected its signature over the survivors that this site was shown; got another" in said[3]
  )
  # Nor does a second request for the other set, or for the shares, get an answer.
  again = sent(grid, "confirm", [(4, messages.survivors_record(session, [0, 1, 3], {}))])
  again += sent(grid, "unmask", ask)
  assert all("after done" in reply.error.reason for reply in again)


def test_a_replayed_session_gets_nothing_from_sites_that_remember_or_have_restarted(plan):
  run = plan("first", rounds=1)
  identity_of = run_identities()
  app = SiteApp(LeastSquares(), run.params, masking=SecureSite(TERMS, identity_of))
  grid = Recording(app, CLIENTS)
  run_rounds(grid, secured(run), CLIENTS)
  old = {}
  for message in grid.asked:
    old.setdefault((message.metadata.message_type, message.metadata.dst_node_id), message.content)

  # The same process knows the session.
  for reply in sent(grid, "keys", [(4, old[KINDS["keys"], 4]["secure"])]):
    assert "expected a new session; got one that was used before" in reply.error.reason

  # A restarted one makes new keys, which the old introduction does not have.
  restarted = SiteApp(LeastSquares(), run.params, masking=SecureSite(TERMS, identity_of))
  grid = Recording(restarted, CLIENTS)
  (keys,) = sent(grid, "keys", [(4, old[KINDS["keys"], 4]["secure"])])
  introduction = old[KINDS["shares"], 4]["secure"]
  (reply,) = sent(grid, "shares", [(4, introduction)])
  assert "expected this site among the clients, with the keys that it made" in reply.error.reason

  # With its new keys among the others' old ones it takes part, but cannot open what was sealed for
  # its old keys: the others' secrets of that session are gone.
  grid = Recording(
    SiteApp(LeastSquares(), run.params, masking=SecureSite(TERMS, identity_of)), CLIENTS
  )
  (keys,) = sent(grid, "keys", [(4, old[KINDS["keys"], 4]["secure"])])
  number, members = messages.read_introduction(old[KINDS["shares"], 4])
  members = replaced(members, messages.read_keys(keys.content, "site_02"))
  session = Session(introduction["session"], 1)
  record = messages.introduction_record(session, Introduction(number, members))
  (reply,) = sent(grid, "shares", [(4, record)])
  assert not reply.has_error()
  (reply,) = grid.send_and_receive([Message(old["train", 4], 4, "train", group_id="1")])
  assert "shares of client 0: expected the text that its sender sealed; got another" in (
    reply.error.reason
  )


def test_signatures_of_one_session_do_not_serve_in_the_next(plan):
  """The set is the same, and so are the sites; only the session is another."""
  secure = SecureRound(some_updates(4)).go("train")
  signatures = {
    n: party.confirm(range(4), secure.server.agreed(name))
    for n, (name, party) in enumerate(secure.parties.items())
  }
  following = SecureRound(some_updates(4)).go("train")
  for name, party in following.parties.items():
    party.confirm(following.survivors, following.server.agreed(name))
  with pytest.raises(PartyError, match="site_00: expected its signature over the survivors"):
    following.parties["site_03"].unmask(signatures)
