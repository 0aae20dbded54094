"""Who is joined to whom, and how safe that is: the bounds, counted on drawn graphs."""

import numpy as np
import pytest

from afspl_jax.federation.secure.graph import connect, degree, needed, parted


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
  near = connect(range(clients), neighbours)
  assert sorted(near) == list(range(clients))
  for client, others in near.items():
    assert len(others) == neighbours and client not in others and list(others) == sorted(others)
    assert all(client in near[other] for other in others)
  assert parts(near, range(clients)) == 1


def test_the_order_is_drawn_anew():
  assert connect(range(40), 4) != connect(range(40), 4)


def test_small_cohorts_share_with_all_and_large_ones_with_few():
  assert [degree(n, 0.6) for n in (3, 10, 32)] == [2, 9, 31]
  assert [degree(n, 0.6) for n in (50, 100, 1000)] == [28, 44, 100]
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
  for _ in range(300):
    near = connect(range(clients), k)
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
