"""The sum is the plain sum whichever clients drop out, if enough stay; else there is none."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afspl_jax.federation.secure import graph
from afspl_jax.federation.secure.coordinator import Aborted
from afspl_jax.federation.secure.party import Rules
from tests.federation.secure.secure_round_in_memory import STAGES, SecureRound, some_updates


def assert_sum(secure):
  assert np.abs(secure.sum.values - secure.plain()).max() <= secure.bound_on_error()
  assert secure.sum.weight == sum(secure.weights[n] for n in secure.masked)


def allowed(clients, lost):
  """Whether enough stay, in a complete graph, with so many lost in each stage."""
  left = clients - lost[0]
  if left < 3:
    return False
  shares, signers = graph.needed(left - 1, 0.6), graph.signers(left, 0.6)
  masked, (unsigned, silent) = left - sum(lost[1:3]), lost[3:]
  # The last two stages need signatures and shares alone: the updates are there already.
  answers = masked - unsigned - silent
  return masked >= max(signers, 3) and masked - unsigned >= signers and answers >= shares


@pytest.mark.parametrize("clients", [3, 5])
def test_the_sum_is_that_of_those_who_stay_with_any_dropouts_at_any_stage(clients):
  """Every way to lose the first few, in order of stage: clients differ in their place alone."""
  updates, weights = some_updates(clients), [10 + i for i in range(clients)]
  went, failed = 0, 0
  for when in itertools.combinations_with_replacement(range(len(STAGES) + 1), clients):
    lost = {stage: [i for i, w in enumerate(when) if w == s] for s, stage in enumerate(STAGES)}
    secure = SecureRound(updates, weights)
    if allowed(clients, [len(lost[stage]) for stage in STAGES]):
      secure.go(**lost)
      assert [n for n in secure.names if n in secure.masked] == [
        n for n, w in zip(secure.names, when, strict=True) if w > 2
      ]
      assert_sum(secure)
      went += 1
    else:
      with pytest.raises(Aborted, match="expected at least"):
        secure.go(**lost)
      failed += 1
  assert went and failed


def test_every_one_of_seven_may_be_lost_at_every_stage():
  updates = some_updates(7)
  for who, stage in itertools.product(range(7), STAGES):
    secure = SecureRound(updates).go(**{stage: [who]})
    assert_sum(secure)
    assert (secure.names[who] in secure.masked) == (stage in ("confirm", "unmask"))


def test_every_pair_of_seven_may_be_lost_before_and_after_its_update():
  updates = some_updates(7)
  for stage in ("confirm", "unmask"):
    for a, b in itertools.combinations(range(7), 2):
      secure = SecureRound(updates).go(train=[a], **{stage: [b]})
      assert_sum(secure)


@settings(max_examples=12, deadline=None)
@given(
  st.integers(8, 20),
  st.sampled_from([0, 6]),
  st.integers(1, 5000),
  st.integers(8, 24),
  st.randoms(),
)
def test_the_sum_holds_for_any_cohort_graph_weights_and_losses(
  clients, neighbours, most, bits, chance
):
  weights = [chance.randint(1, most) for _ in range(clients)]
  secure = SecureRound(some_updates(clients), weights, rules=Rules(0.6, neighbours), bits=bits)
  lost = {stage: [i for i in range(clients) if chance.random() < 0.04] for stage in STAGES}
  try:
    secure.go(**lost)
  except Aborted:  # with six neighbours two lost ones beside each other are enough
    assert any(lost.values())
  else:
    assert_sum(secure)


def test_below_the_threshold_it_says_how_many_are_missing():
  with pytest.raises(Aborted, match=r"at least 7 masked updates; got 6"):
    SecureRound(some_updates(10)).go(train=range(4))
  with pytest.raises(Aborted, match=r"at least 5 of site_\d\d and its neighbours .*; got 4"):
    # All neighbours of one but three, and hardly more: the round itself is large enough.
    secure = SecureRound(some_updates(16), rules=Rules(0.6, 6)).go("keys")
    secure.shares()
    secure.train(lost=[secure.names[i] for i in secure.server.peers_of("site_00")[:3]])
  with pytest.raises(Aborted, match="at least 7 signatures over the survivors; got 6"):
    SecureRound(some_updates(10)).go(confirm=range(4))
  secure = SecureRound(some_updates(10)).go("confirm", train=[3])
  with pytest.raises(Aborted, match="at least 6 shares of site_00's secret; got 5"):
    secure.unmask(lost=secure.names[6:])


def test_fewer_than_three_have_no_secure_sum():
  with pytest.raises(Aborted, match="at least 3 clients with keys; got 2"):
    SecureRound(some_updates(2)).go()


def test_fewer_updates_than_asked_for_are_not_summed():
  with pytest.raises(Aborted, match="at least 5 masked updates; got 4"):
    SecureRound(some_updates(5), fewest=5).go(train=[2])


def test_one_false_share_is_found_where_there_is_another_in_its_place():
  secure = SecureRound(some_updates(6)).go("confirm", train=[5])
  reveal = secure.parties["site_01"].unmask

  def lying(signatures):
    return {of: bytes(16) for of in reveal(signatures)}

  secure.parties["site_01"].unmask = lying
  secure.unmask()
  assert_sum(secure)
  assert list(secure.server.left_out) == ["site_01"]
  assert "another share than" in secure.server.left_out["site_01"].reason


def test_false_shares_without_others_in_their_place_end_the_round():
  secure = SecureRound(some_updates(6)).go("confirm")
  for name in ("site_01", "site_02"):
    secure.parties[name].unmask = lambda signatures: {of: bytes(16) for of in range(6)}
  with pytest.raises(Aborted, match="secret do not fit together"):
    secure.unmask()


def test_a_client_with_another_ones_keys_or_none_is_left_out():
  secure = SecureRound(some_updates(9))
  shown = {n: p.advertise() for n, p in secure.parties.items()}
  keys = {n: member.keys for n, member in shown.items()}
  shown["site_02"] = shown["site_02"]._replace(
    keys=keys["site_02"]._replace(seal=keys["site_05"].mask)
  )
  shown["site_06"] = shown["site_06"]._replace(keys=keys["site_06"]._replace(mask=bytes(32)))
  shown["site_07"] = shown["site_07"]._replace(signature=shown["site_03"].signature)
  secure.server._known["site_08"] = shown["site_07"].identity
  secure.introduce(shown)
  assert "another client's" in secure.server.left_out["site_02"].reason
  assert "another client's" in secure.server.left_out["site_05"].reason
  assert "public keys" in secure.server.left_out["site_06"].reason
  assert "its identity key signed" in secure.server.left_out["site_07"].reason
  assert "of earlier rounds" in secure.server.left_out["site_08"].reason
  secure.shares()
  secure.train()
  secure.confirm()
  secure.unmask()
  assert_sum(secure)
  assert len(secure.masked) == 4


def test_neighbours_without_enough_others_are_left_out_in_turn():
  rules = Rules(0.6, neighbours=4)
  secure = SecureRound(some_updates(20), rules=rules).go("keys")
  gone = [secure.names[i] for i in secure.server.peers_of("site_00")[:3]]
  secure.shares(lost=gone)
  assert "fewer than 3 of it and its neighbours" in secure.server.left_out["site_00"].reason
  assert "site_00" not in secure.forwarded
  secure.train()
  secure.confirm()
  secure.unmask()
  assert_sum(secure)
