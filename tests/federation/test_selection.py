from collections import Counter

import pytest

from afspl_jax.federation.selection import select

SITES = [f"site_{i}" for i in range(10)]


def test_selection_is_sorted_unique_and_of_the_asked_size():
  for round in range(20):
    chosen = select(SITES, 4, seed=0, round=round)
    assert chosen == sorted(set(chosen)) and len(chosen) == 4 and set(chosen) <= set(SITES)


def test_selection_follows_from_seed_and_round_alone():
  assert select(reversed(SITES), 4, 1, 5) == select(SITES, 4, 1, 5)
  assert len({tuple(select(SITES, 4, 1, round)) for round in range(20)}) > 10
  assert len({tuple(select(SITES, 4, seed, 5)) for seed in range(20)}) > 10


def test_selection_is_pinned_across_versions():
  assert select(SITES, 3, seed=0, round=1) == PINNED


PINNED = ["site_1", "site_2", "site_5"]


def test_every_site_is_drawn_equally_often():
  rounds = 2000
  counts = Counter(site for round in range(rounds) for site in select(SITES, 3, 0, round))
  expected = rounds * 3 / len(SITES)
  chi2 = sum((counts[site] - expected) ** 2 / (expected * 0.7) for site in SITES)
  assert chi2 < 27.9  # p = 0.001 at 9 degrees of freedom


def test_all_sites_when_as_many_are_asked():
  assert select(SITES, 10, 0, 1) == sorted(SITES)


@pytest.mark.parametrize("count", [0, -1, 11])
def test_an_impossible_number_is_refused_by_field_name(count):
  with pytest.raises(ValueError, match=f"fed.clients_per_round: expected 1 to 10.*got {count}"):
    select(SITES, count, 0, 1)
