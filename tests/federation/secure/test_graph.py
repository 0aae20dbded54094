"""Who is joined to whom, and how safe that is: the bounds, counted on drawn graphs."""

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chisquare

from afspl_jax.federation.secure.graph import (
  FEWEST,
  connect,
  degree,
  is_unanimous,
  needed,
  parted,
  signers,
)

DOCS = Path(__file__).parents[3] / "docs" / "security.md"


def parts(near, staying):
  """Into how many parts those who stay fall."""
  left, count = set(staying), 0
  while left:
    count += 1
    edge = [left.pop()]
    while edge:
      for other in set(near[edge.pop()]) & left:
        left.remove(other)
        edge.append(other)
  return count


@pytest.mark.parametrize(("clients", "neighbours"), [(3, 2), (10, 9), (11, 4), (50, 12), (7, 6)])
def test_everyone_has_as_many_neighbours_and_is_theirs(clients, neighbours):
  near = connect(clients, neighbours, b"seed")
  assert sorted(near) == list(range(clients))
  for client, others in near.items():
    assert len(others) == neighbours and client not in others and list(others) == sorted(others)
    assert all(client in near[other] for other in others)
  assert parts(near, range(clients)) == 1


def test_the_order_is_that_of_the_seed():
  assert connect(40, 4, b"a") == connect.__wrapped__(40, 4, b"a") != connect(40, 4, b"b")
  met = [connect(40, 4, b"%d" % seed)[7] for seed in range(400)]
  times = np.bincount(np.concatenate(met), minlength=40)
  assert times[7] == 0 and chisquare(np.delete(times, 7)).pvalue > 1e-4


def test_small_cohorts_share_with_all_and_large_ones_with_few():
  assert [degree(n, 0.6) for n in (3, 10, 32)] == [2, 9, 31]
  assert [degree(n, 0.6) for n in (50, 100, 1000)] == [28, 44, 156]
  assert degree(100, 0.7) > degree(100, 0.6)  # to need more shares is to fail sooner
  assert degree(100, 0.99) == 99
  assert [degree(100, 0.6, n) for n in (7, 8, 500)] == [8, 8, 99]


def test_shares_that_are_needed_are_a_majority():
  assert [needed(k, 0.6) for k in (2, 4, 9, 44)] == [2, 3, 6, 27]
  assert all(2 * needed(k, 0.51) > k + 1 for k in range(2, 200))


def test_no_drawn_graph_is_exposed_parted_or_fails_where_a_fifth_colludes_and_a_fifth_is_lost():
  clients = 100
  k = degree(clients, 0.6)
  shares, failed = needed(k, 0.6), 0
  colluding, lost = set(range(20)), set(range(20, 40))
  for draw in range(300):
    near = connect(clients, k, b"%d" % draw)
    honest = set(near) - colluding - lost
    assert parts(near, honest) == 1
    assert max(len(colluding & set(near[i])) for i in near) < shares
    failed += min(len(set(near[i]) - lost) for i in near) < shares
  assert failed <= 3


def test_the_bounds_hold_where_they_can_be_counted():
  """On a graph that is too thin they promise little, and no more than what is seen."""
  clients, k, rng = 40, 4, np.random.default_rng(0)
  others, found = set(range(6)), 0
  for _ in range(2000):
    order = rng.permutation(clients)
    near = {
      int(order[i]): {int(order[(i + s) % clients]) for s in (-2, -1, 1, 2)} for i in range(40)
    }
    found += parts(near, set(near) - others) > 1
  assert 20 < found <= 2000 * parted(clients, k, len(others)) < 300


@pytest.mark.parametrize("threshold", [0.51, 0.6, 0.8])
def test_two_sets_of_survivors_cannot_both_be_signed_by_enough(threshold):
  """Honest clients sign one set each, colluding ones both: the split that helps a server most."""
  for clients in range(3, 300):
    colluding = clients // 5
    honest = clients - colluding
    smaller_half = honest // 2 + colluding
    assert signers(clients, threshold) > smaller_half
    # And a fifth may drop out.
    assert threshold > 0.6 or signers(clients, threshold) <= clients - clients // 5 or clients < 5


def test_the_docs_have_the_bounds():
  """Rows: sites, colluding, signatures and sites in a sum, dropping out, honest in a sum."""
  text = DOCS.read_text(encoding="utf-8").partition("| sites in the round |")[2]
  rows = [row.strip("| ").split(" | ") for row in text.partition("\n\n")[0].splitlines()[2:]]
  assert len(rows) == 5
  for row in rows:
    clients, colluding = int(row[0]), int(row[0]) // 5
    signed = signers(clients, 0.6)
    least = max(signed, FEWEST)
    expected = [clients, colluding, f"{signed}, {least}", clients - least, least - colluding]
    assert row == list(map(str, expected))


@pytest.mark.parametrize("threshold", [0.51, 0.55, 0.6, 0.8])
def test_all_as_survivors_need_no_signatures_only_where_another_set_cannot_be_signed(threshold):
  """Sites that were shown all give shares at once; as many others as must sign another set."""
  for clients in range(3, 300):
    colluding, signed = clients // 5, signers(clients, threshold)
    given_at_once = clients - colluding - (signed - colluding) + colluding
    assert given_at_once < needed(clients - 1, threshold)
    assert is_unanimous(clients, clients - 1) and not is_unanimous(clients, clients - 2)
  # The fewer shares give a secret, the more signatures are needed.
  assert signers(100, threshold) == {0.51: 70, 0.55: 66, 0.6: 61, 0.8: 80}[threshold]


def test_a_graph_of_the_chosen_degree_keeps_every_part_large_for_all_graphs_that_may_be_tried():
  """The hypergeometric tail in exact arithmetic, far beyond the digits of a float."""
  clients = 1000
  k, colluding = degree(clients, 0.6), 200
  shares = needed(k, 0.6)
  tail = sum(
    math.comb(colluding, i) * math.comb(clients - 1 - colluding, k - i)
    for i in range(shares - 2, k + 1)
  )
  exposed = Fraction(clients * tail, math.comb(clients - 1, k))
  assert 2**60 * exposed < Fraction(1, 2**40)
