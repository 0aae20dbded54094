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
  shares = graph.needed(left - 1, 0.6)
  return left - sum(lost[1:]) >= max(shares, 3) or (
    # The last stage needs shares alone: the updates are there already.
    left - sum(lost[1:3]) >= max(shares, 3) and left - sum(lost[1:]) >= shares
  )


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
    assert (secure.names[who] in secure.masked) == (stage == "unmask")


def test_every_pair_of_seven_may_be_lost_before_and_after_its_update():
  updates = some_updates(7)
  for a, b in itertools.combinations(range(7), 2):
    secure = SecureRound(updates).go(train=[a], unmask=[b])
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
  with pytest.raises(Aborted, match=r"at least 6 of site_00 and its neighbours .*; got 5"):
    SecureRound(some_updates(10)).go(train=range(5))
  secure = SecureRound(some_updates(10)).go("train", train=[3])
  with pytest.raises(Aborted, match="at least 6 shares of site_00's secret; got 5"):
    secure.unmask(lost=secure.names[6:])


def test_fewer_than_three_have_no_secure_sum():
  with pytest.raises(Aborted, match="at least 3 clients with keys; got 2"):
    SecureRound(some_updates(2)).go()


def test_fewer_updates_than_asked_for_are_not_summed():
  with pytest.raises(Aborted, match="at least 5 masked updates; got 4"):
    SecureRound(some_updates(5), fewest=5).go(train=[2])


def test_one_false_share_is_found_where_there_is_another_in_its_place():
  secure = SecureRound(some_updates(6)).go("train", train=[5])
  reveal = secure.parties["site_01"].unmask

  def lying(survivors, lost):
    return {of: bytes(16) for of in reveal(survivors, lost)}

  secure.parties["site_01"].unmask = lying
  secure.unmask()
  assert_sum(secure)
  assert list(secure.server.left_out) == ["site_01"]
  assert "another share than" in secure.server.left_out["site_01"].reason


def test_false_shares_without_others_in_their_place_end_the_round():
  secure = SecureRound(some_updates(6)).go("train")
  for name in ("site_01", "site_02"):
    secure.parties[name].unmask = lambda survivors, lost, name=name: {
      of: bytes(16) for of in range(6)
    }
  with pytest.raises(Aborted, match="secret do not fit together"):
    secure.unmask()


def test_a_client_with_another_ones_keys_or_none_is_left_out():
  secure = SecureRound(some_updates(7))
  for party in secure.parties.values():
    party.advertise()
  shown = {n: p._shown for n, p in secure.parties.items()}
  shown["site_02"] = shown["site_02"]._replace(seal=shown["site_05"].mask)
  shown["site_06"] = shown["site_06"]._replace(mask=bytes(32))
  secure.introductions = secure.server.introduce(shown)
  assert "another client's" in secure.server.left_out["site_02"].reason
  assert "another client's" in secure.server.left_out["site_05"].reason
  assert "public keys" in secure.server.left_out["site_06"].reason
  secure.shares()
  secure.train()
  secure.unmask()
  assert_sum(secure)
  assert len(secure.masked) == 4


def test_neighbours_without_enough_others_are_left_out_in_turn():
  rules = Rules(0.6, neighbours=4)
  secure = SecureRound(some_updates(12), rules=rules).go("keys")
  alone = secure.introductions["site_00"].peers
  gone = [secure.names[i] for i in list(alone)[:3]]
  secure.shares(lost=gone)
  assert "fewer than 3 of it and its neighbours" in secure.server.left_out["site_00"].reason
  assert "site_00" not in secure.forwarded
  secure.train()
  secure.unmask()
  assert_sum(secure)
