"""A server swaps keys: sites refuse before they send anything, and nothing of them is unmasked."""

import pytest

from afspl_jax.federation.client.client_app import SiteApp
from afspl_jax.federation.contracts import PartyError
from afspl_jax.federation.secure import messages
from afspl_jax.federation.secure.coordinator import Introduction
from afspl_jax.federation.secure.crypto import Session
from afspl_jax.federation.secure.identity import run_identities
from afspl_jax.federation.secure.party import Forwarded
from afspl_jax.federation.secure.roster import Roster
from afspl_jax.federation.secure.site import SecureSite
from afspl_jax.federation.server.rounds import run_rounds
from tests.federation.least_squares import CLIENTS, LeastSquares
from tests.federation.secure.lying_server import introduced_as, lied_to, replaced, servers_own
from tests.federation.secure.secure_round_in_memory import SecureRound, some_updates
from tests.federation.secure.secure_runs import TERMS, Recording, secured


def under_the_victims_identity(session, members):
  """Its own keys, with a signature that it cannot make."""
  (victim,) = [member for member in members if member.site == "site_02"]
  return replaced(members, servers_own(session)._replace(identity=victim.identity))


def of_another_session(session, members):
  """The victim's own signature, over the keys of an earlier session."""
  (victim,) = [member for member in members if member.site == "site_02"]
  other = session._replace(name=bytes(16))
  return replaced(members, victim._replace(signature=servers_own(other).signature))


@pytest.mark.parametrize("change", [under_the_victims_identity, of_another_session])
def test_keys_that_are_not_signed_are_refused_before_anything_is_sent(plan, change):
  run = plan("swap", rounds=1, retries=0)
  grid, why = lied_to(run, introduced_as(change))
  line = (
    "site_02: expected keys that its identity key signed for this session and round; got others"
  )
  assert why.count(f"failed: shares: PartyError: {line}") == 3
  assert len(grid.replies_to("shares")) == 1 and not grid.replies_to("train")


def sites_with(rosters):
  """Sites whose identities are known to each other as the rosters say."""
  made = run_identities()

  def identity_of(site):
    identity = made(site)
    identity.roster = rosters[site]
    return identity

  return SecureSite(TERMS, identity_of), made


def names():
  return [f"site_{i:02d}" for i in range(CLIENTS)]


@pytest.mark.parametrize("given", [True, False])
def test_keys_of_an_identity_that_is_not_in_the_roster_are_refused(plan, tmp_path, given):
  """A given roster names all; a pinned one has the keys that were seen in the first round."""
  rosters = {name: Roster(tmp_path / f"{name}.pub") for name in names()}
  masking, made = sites_with(rosters)
  if given:
    for name, roster in rosters.items():
      roster.expect({other: made(other).public for other in names()})
      rosters[name] = Roster(tmp_path / f"{name}.pub", given=True)
  else:
    honest = plan("first", rounds=1)
    app = SiteApp(LeastSquares(), honest.params, masking=masking)
    run_rounds(Recording(app, CLIENTS), secured(honest), CLIENTS)
  run = plan("swap", rounds=1, retries=0)
  swap = introduced_as(lambda session, members: replaced(members, servers_own(session)))
  grid, why = lied_to(run, swap, masking=masking)
  assert why.count("site_02: expected the identity key of this site's roster; got another.") == 3
  assert not grid.replies_to("train")


def test_an_invented_site_is_not_in_a_given_roster(plan, tmp_path):
  rosters = {name: Roster(tmp_path / f"{name}.pub") for name in names()}
  masking, made = sites_with(rosters)
  for name, roster in rosters.items():
    roster.expect({other: made(other).public for other in names()})
    rosters[name] = Roster(tmp_path / f"{name}.pub", given=True)
  run = plan("sybil", rounds=1, retries=0)
  grid, why = lied_to(
    run,
    introduced_as(lambda session, members: [*members, servers_own(session, "zzz")]),
    masking=masking,
  )
  assert why.count("zzz: expected a site of this site's roster; got one that is not in it") == 3
  assert not grid.replies_to("train")


def test_what_a_site_seals_for_one_list_of_members_cannot_be_opened_with_another():
  """At first use the server's keys pass; the numbers and keys of both sites are the same."""
  secure = SecureRound(some_updates(4)).go("keys")
  members = secure.introductions["site_00"].members
  more = [*members, servers_own(secure.session, "zzz")]
  sealed = {
    number: secure.parties[name].share(number, more if number == 1 else members)
    for number, name in enumerate(secure.names)
  }
  words = secure.quantiser.encode(secure.updates["site_00"], 1)
  forwarded = Forwarded(range(4), {number: sealed[number][0] for number in (1, 2, 3)})
  with pytest.raises(PartyError, match="shares of client 1: expected the text that its sender sea"):
    secure.parties["site_00"].mask(words, forwarded)


def test_a_round_whose_sites_see_other_members_ends_before_it_is_unmasked(plan):
  run = plan("views", rounds=1, retries=0)

  def half(site, content):
    if site < 2:
      number, members = messages.read_introduction(content)
      session = Session(content["secure"]["session"], 1)
      more = [*members, servers_own(session, "zzz")]
      content["secure"] = messages.introduction_record(session, Introduction(number, more))

  grid, why = lied_to(run, ("shares", half))
  assert "shares: secure: sealed: expected 144 bytes; got 192" in why
  assert not grid.replies_to("unmask")
