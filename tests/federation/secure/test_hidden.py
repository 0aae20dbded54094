"""What the server sees of one client: numbers that any update could have given."""

import itertools

import numpy as np
import pytest
from scipy.stats import chi2_contingency, chisquare

from afspl_jax.federation.contracts import PartyError
from afspl_jax.federation.secure import crypto
from afspl_jax.federation.secure.masks import commitment, pair_mask, self_mask
from afspl_jax.federation.secure.party import Forwarded, Party
from tests.federation.secure.secure_round_in_memory import (
  IDENTITY,
  RULES,
  SecureRound,
  new_session,
  some_updates,
)


def bytes_of(secure, name):
  return secure.quantiser.pack(secure.masked[name])


def looks_uniform(data):
  return chisquare(np.bincount(data, minlength=256)).pvalue > 1e-6


def test_the_bytes_of_one_client_are_uniform_over_runs():
  """All updates are zeros: what is left is the masks."""
  same = [np.zeros(300)] * 4
  seen = np.concatenate([bytes_of(SecureRound(same).go("train"), "site_01") for _ in range(40)])
  assert len(seen) > 30_000 and looks_uniform(seen)
  assert not looks_uniform(np.full(30_000, 7, np.uint8))


def test_equal_updates_look_unrelated_to_each_other_and_to_what_they_are_in_another_round():
  updates = [some_updates(1, 3000)[0]] * 4
  one, other = SecureRound(updates).go("train"), SecureRound(updates).go("train")
  seen = [bytes_of(secure, name) for secure in (one, other) for name in secure.names]
  plain = one.quantiser.pack(one.words["site_00"])
  for a, b in itertools.combinations([*seen, plain], 2):
    assert looks_uniform(a - b)


def test_a_small_update_and_a_large_one_look_the_same():
  seen = []
  for scale in (1e-3, 1.0):
    updates = [scale * update for update in some_updates(4, 5000)]
    seen.append(np.bincount(bytes_of(SecureRound(updates).go("train"), "site_02"), minlength=256))
  assert chi2_contingency(seen).pvalue > 1e-6


def test_fewer_shares_than_needed_fit_every_secret():
  """With threshold - 1 shares given, there is a last share for any seed: they say nothing."""
  seed, threshold = bytes(range(16)), 4
  shares = crypto.split_seed(seed, threshold, 7)
  known = dict(enumerate(shares[: threshold - 1]))
  assert crypto.combine_shares(known) != seed
  assert crypto.combine_shares(known | {5: shares[5]}) == seed
  rng, secrets = np.random.default_rng(0), []
  for _ in range(150):
    secrets.append(crypto.combine_shares(known | {5: rng.bytes(16)}))
  assert len(set(secrets)) == 150
  assert looks_uniform(np.frombuffer(b"".join(secrets), np.uint8))


def test_a_server_with_colluding_clients_has_too_few_shares_of_one_secret():
  """Of a client that stayed all give shares of its self mask; those of its mask key are with the
  colluding alone, who are fewer than it takes."""
  secure = SecureRound(some_updates(7)).go("confirm")
  victim, colluding = secure.introductions["site_06"].number, secure.names[:4]
  kept = [secure.parties[name]._held[victim][0] for name in colluding]
  secure.unmask()
  for name in secure.names[4:]:
    assert not set(secure.revealed[name].values()) & set(kept)
    assert not secure.parties[name]._held
  assert len(kept) < secure.server._threshold


def test_an_update_that_comes_too_late_stays_under_its_own_mask():
  """Its neighbours have given the key of all masks that it shared with them."""
  secure = SecureRound([np.zeros(2000)] * 5).go("shares")
  late = (
    secure.parties["site_03"]
    .mask(secure.quantiser.encode(np.zeros(2000), 1), secure.forwarded["site_03"])
    .words
  )
  secure.train(lost=["site_03"])
  secure.confirm()
  secure.unmask()
  number = secure.introductions["site_03"].number
  shares = {secure.introductions[n].number: given[number] for n, given in secure.revealed.items()}
  seed = crypto.combine_shares({of: shares[of] for of in sorted(shares)[:3]})
  key = crypto.private_key(seed, secure.session)
  members, joint = secure.introductions["site_03"].members, secure.server._joint
  for peer in secure.server.peers_of("site_03"):
    masks, sign = pair_mask(key, members[peer].keys.mask, joint, number, peer)
    crypto.add_mask(late, masks, -sign)
  assert looks_uniform(secure.quantiser.pack(late))
  crypto.add_mask(late, self_mask(secure.parties["site_03"]._self_seed, secure.session), -1)
  assert np.array_equal(late, secure.quantiser.encode(np.zeros(2000), 1))  # nothing else is on it


def test_no_answer_holds_shares_of_both_secrets_of_one_client():
  secure = SecureRound(some_updates(6)).go("confirm", train=[2])
  held = {name: dict(party._held) for name, party in secure.parties.items()}
  secure.unmask()
  lost = secure.introductions["site_02"].number
  for name, given in secure.revealed.items():
    assert given == {of: pair[of != lost] for of, pair in held[name].items()}
    assert len(given) == 6


def a_party(stage="keys", clients=4):
  secure = SecureRound(some_updates(clients)).go(stage)
  return secure, secure.parties["site_01"]


def test_every_stage_is_done_once_and_in_order():
  secure, party = a_party("keys")
  with pytest.raises(PartyError, match=r"masked: expected each stage .* after advertised"):
    party.mask(np.zeros(10, np.uint32), Forwarded([], {}))
  with pytest.raises(PartyError, match="after done"):  # and what was out of order ends the session
    party.share(*secure.introductions["site_01"])
  secure, party = a_party("unmask")
  with pytest.raises(PartyError, match=r"expected each stage .* after done"):
    party.unmask(secure.signatures)
  for name in ("_mask_seed", "_self_seed", "_mask_key", "_seal_key"):
    assert not hasattr(party, name)
  assert not party._held


@pytest.mark.parametrize("spoil", ["flipped", "reflected", "of another", "of another session"])
def test_shares_that_a_neighbour_did_not_seal_for_this_client_are_rejected(spoil):
  secure, party = a_party("shares")
  shared, sealed = secure.forwarded["site_01"]
  sealed = dict(sealed)
  other = sorted(sealed)[0]
  sealed[other] = {
    "flipped": bytes([sealed[other][0] ^ 1]) + sealed[other][1:],
    "reflected": secure.sealed["site_01"][other],
    "of another": sealed[sorted(sealed)[1]],
    "of another session": a_party("shares")[0].forwarded["site_01"].sealed[other],
  }[spoil]
  with pytest.raises(
    PartyError, match=f"shares of client {other}: expected the text that its sender"
  ):
    party.mask(np.zeros(10, np.uint32), Forwarded(shared, sealed))


def test_a_mask_is_taken_off_by_its_own_key_alone():
  session, total = new_session(), np.zeros(100_000, np.uint32)
  key = crypto.derive(b"a", session.info("own mask"))
  crypto.add_mask(total, key)
  assert len(np.unique(total)) > 99_900
  crypto.add_mask(total, crypto.derive(b"a", new_session().info("own mask")), -1)
  assert total.any()
  again = np.zeros_like(total)
  crypto.add_mask(again, key)
  crypto.add_mask(again, key, -1)
  assert not again.any()


def test_keys_of_other_purposes_sessions_and_parties_are_others():
  session = new_session()
  infos = [
    session.info("own mask"),
    session.info("commitment"),
    new_session().info("own mask"),
    session._replace(round=4).info("own mask"),
    session.info("sealing key", 1, 2),
    session.info("sealing key", 2, 1),
    session.info("sealing key", 12),
  ]
  assert len({crypto.derive(b"secret", info) for info in infos}) == len(infos)


def test_what_a_client_shows_does_not_hold_its_secrets():
  party = Party(new_session(), RULES, IDENTITY("site_00"))
  member = party.advertise()
  shown = b"".join([member.identity, member.signature, *member.keys])
  assert party._self_seed not in shown and party._mask_seed not in shown
  assert commitment(party._self_seed, party.session) in shown
