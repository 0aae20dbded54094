"""The sum is the plain sum whoever is lost, as long as enough stay; or else there is none."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afspl_jax.federation.secure import graph
from afspl_jax.federation.secure.coordinator import Aborted
from afspl_jax.federation.secure.party import Rules
from tests.federation.secure.rounds_of import STAGES, Told, some_updates


def assert_sum(told):
  assert np.abs(told.sum.values - told.plain()).max() <= told.bound_on_error()
  assert told.sum.weight == sum(told.weights[n] for n in told.masked)


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
    told = Told(updates, weights)
    if allowed(clients, [len(lost[stage]) for stage in STAGES]):
      told.go(**lost)
      assert [n for n in told.names if n in told.masked] == [
        n for n, w in zip(told.names, when, strict=True) if w > 2
      ]
      assert_sum(told)
      went += 1
    else:
      with pytest.raises(Aborted, match="expected at least"):
        told.go(**lost)
      failed += 1
  assert went and failed


def test_every_one_of_seven_may_be_lost_at_every_stage():
  updates = some_updates(7)
  for who, stage in itertools.product(range(7), STAGES):
    told = Told(updates).go(**{stage: [who]})
    assert_sum(told)
    assert (told.names[who] in told.masked) == (stage == "unmask")


def test_every_pair_of_seven_may_be_lost_before_and_after_its_update():
  updates = some_updates(7)
  for a, b in itertools.combinations(range(7), 2):
    told = Told(updates).go(train=[a], unmask=[b])
    assert_sum(told)


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
  told = Told(some_updates(clients), weights, rules=Rules(0.6, neighbours), bits=bits)
  lost = {stage: [i for i in range(clients) if chance.random() < 0.04] for stage in STAGES}
  try:
    told.go(**lost)
  except Aborted:  # with six neighbours two lost ones beside each other are enough
    assert any(lost.values())
  else:
    assert_sum(told)


def test_below_the_threshold_it_says_how_many_are_missing():
  with pytest.raises(Aborted, match=r"at least 6 of site_00 and its neighbours .*; got 5"):
    Told(some_updates(10)).go(train=range(5))
  told = Told(some_updates(10)).go("train", train=[3])
  with pytest.raises(Aborted, match="at least 6 shares of site_00's secret; got 5"):
    told.unmask(lost=told.names[6:])


def test_fewer_than_three_have_no_secure_sum():
  with pytest.raises(Aborted, match="at least 3 clients with keys; got 2"):
    Told(some_updates(2)).go()


def test_fewer_updates_than_asked_for_are_not_summed():
  with pytest.raises(Aborted, match="at least 5 masked updates; got 4"):
    Told(some_updates(5), fewest=5).go(train=[2])


def test_one_false_share_is_found_where_there_is_another_in_its_place():
  told = Told(some_updates(6)).go("train", train=[5])
  reveal = told.parties["site_01"].unmask

  def lying(survivors, lost):
    return {of: bytes(16) for of in reveal(survivors, lost)}

  told.parties["site_01"].unmask = lying
  told.unmask()
  assert_sum(told)
  assert list(told.server.left_out) == ["site_01"]
  assert "another share than" in told.server.left_out["site_01"].reason


def test_false_shares_without_others_in_their_place_end_the_round():
  told = Told(some_updates(6)).go("train")
  for name in ("site_01", "site_02"):
    told.parties[name].unmask = lambda survivors, lost, name=name: {
      of: bytes(16) for of in range(6)
    }
  with pytest.raises(Aborted, match="secret do not fit together"):
    told.unmask()


def test_a_client_with_another_ones_keys_or_none_is_left_out():
  told = Told(some_updates(7))
  for party in told.parties.values():
    party.advertise()
  shown = {n: p._shown for n, p in told.parties.items()}
  shown["site_02"] = shown["site_02"]._replace(seal=shown["site_05"].mask)
  shown["site_06"] = shown["site_06"]._replace(mask=bytes(32))
  told.told = told.server.introduce(shown)
  assert "another client's" in told.server.left_out["site_02"].reason
  assert "another client's" in told.server.left_out["site_05"].reason
  assert "public keys" in told.server.left_out["site_06"].reason
  told.shares()
  told.train()
  told.unmask()
  assert_sum(told)
  assert len(told.masked) == 4


def test_neighbours_without_enough_others_are_left_out_in_turn():
  rules = Rules(0.6, neighbours=4)
  told = Told(some_updates(12), rules=rules).go("keys")
  alone = told.told["site_00"].peers
  gone = [told.names[i] for i in list(alone)[:3]]
  told.shares(lost=gone)
  assert "fewer than 3 of it and its neighbours" in told.server.left_out["site_00"].reason
  assert "site_00" not in told.given
  told.train()
  told.unmask()
  assert_sum(told)
