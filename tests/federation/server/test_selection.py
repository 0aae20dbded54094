import itertools
import math
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from afspl_jax.federation.server.selection import METHODS, Candidate, poisson_sample, select

SITES = {f"site_{i}": Candidate(10 * (i + 1), None if i % 3 == 0 else i / 10) for i in range(10)}

every_method = pytest.mark.parametrize("method", METHODS)
random_method = pytest.mark.parametrize("method", ["uniform", "size", "power_of_choice"])


def of_sizes(*sizes):
  return {f"site_{i}": Candidate(size, None) for i, size in enumerate(sizes)}


@every_method
def test_selection_is_sorted_unique_and_of_the_asked_size(method):
  for round in range(20):
    chosen = select(method, SITES, 4, seed=0, round=round)
    assert chosen == sorted(set(chosen)) and len(chosen) == 4 and set(chosen) <= set(SITES)


@every_method
def test_selection_does_not_depend_on_the_order_of_sites(method):
  backwards = dict(reversed(SITES.items()))
  for round in range(20):
    assert select(method, backwards, 4, 1, round) == select(method, SITES, 4, 1, round)


@random_method
def test_selection_follows_from_seed_and_round(method):
  assert select(method, SITES, 4, 1, 5) == select(method, SITES, 4, 1, 5)
  assert len({tuple(select(method, SITES, 4, 1, round)) for round in range(20)}) > 3
  assert len({tuple(select(method, SITES, 4, seed, 5)) for seed in range(20)}) > 3


@every_method
def test_selection_is_pinned_across_versions(method):
  assert select(method, SITES, 3, seed=0, round=1) == PINNED[method]


PINNED = {
  "uniform": ["site_1", "site_2", "site_5"],
  "size": ["site_1", "site_2", "site_9"],
  "round_robin": ["site_3", "site_4", "site_5"],
  "power_of_choice": ["site_6", "site_8", "site_9"],
}


@every_method
def test_all_sites_when_as_many_are_asked(method):
  assert select(method, SITES, 10, 0, 1) == sorted(SITES)


@every_method
@pytest.mark.parametrize("count", [0, -1, 11])
def test_an_impossible_number_is_rejected_by_field_name(method, count):
  with pytest.raises(ValueError, match=f"fed.clients_per_round: expected 1 to 10.*got {count}"):
    select(method, SITES, count, 0, 1)


def test_uniform_draws_every_site_equally_often():
  rounds = 2000
  drawn = (select("uniform", SITES, 3, 0, round) for round in range(rounds))
  counts = Counter(site for chosen in drawn for site in chosen)
  expected = rounds * 3 / len(SITES)
  chi2 = sum((counts[site] - expected) ** 2 / (expected * 0.7) for site in SITES)
  assert chi2 < 27.9  # p = 0.001 at 9 degrees of freedom


def test_uniform_knows_nothing_of_a_site_but_its_name():
  other = {site: Candidate(1, 5.0) for site in SITES}
  for round in range(20):
    assert select("uniform", other, 4, 0, round) == select("uniform", SITES, 4, 0, round)


def test_size_draws_one_site_in_proportion_to_its_examples():
  sites, rounds = of_sizes(1, 2, 3, 10, 100), 1500
  counts = Counter(select("size", sites, 1, 0, round)[0] for round in range(rounds))
  total = sum(site.num_examples for site in sites.values())
  expected = {name: rounds * site.num_examples / total for name, site in sites.items()}
  chi2 = sum((counts[name] - expected[name]) ** 2 / expected[name] for name in sites)
  assert chi2 < 18.5  # p = 0.001 at 4 degrees of freedom


def test_size_draws_one_after_the_other_among_those_left():
  """The probability of a pair, {a, b}: p_a p_b / (1 - p_a) + p_b p_a / (1 - p_b)."""
  sites, rounds = of_sizes(1, 2, 3, 6), 1500
  counts = Counter(tuple(select("size", sites, 2, 0, round)) for round in range(rounds))
  share = {name: site.num_examples / 12 for name, site in sites.items()}
  chi2 = 0
  for pair in itertools.combinations(sites, 2):
    a, b = (share[name] for name in pair)
    expected = rounds * (a * b / (1 - a) + b * a / (1 - b))
    chi2 += (counts[pair] - expected) ** 2 / expected
  assert chi2 < 20.5  # p = 0.001 at 5 degrees of freedom


def test_size_of_equal_sites_is_uniform():
  sites = {site: Candidate(17, None) for site in SITES}
  for round in range(50):
    assert select("size", sites, 4, 0, round) == select("uniform", sites, 4, 0, round)


def test_size_of_a_site_changes_no_comparison_of_others():
  """A draw of a site hangs on (seed, round, name, size) alone: others only rank before or after."""
  larger = SITES | {"site_0": Candidate(10**6, None)}
  for round in range(50):
    before, after = (set(select("size", sites, 4, 0, round)) for sites in (SITES, larger))
    assert len(before - after) <= 1 and after - before <= {"site_0"}


def test_size_takes_sites_without_examples_last():
  sites = of_sizes(0, 5, 0, 1)
  for round in range(20):
    assert {"site_1", "site_3"} <= set(select("size", sites, 3, 0, round))


@pytest.mark.parametrize("number, count", [(10, 3), (7, 7), (5, 1), (9, 6)])
def test_round_robin_gives_every_site_the_same_turns_over_any_rounds(number, count):
  sites = of_sizes(*[1] * number)
  chosen = [select("round_robin", sites, count, 3, round) for round in range(30)]
  for first, last in itertools.combinations(range(31), 2):
    turns = Counter(site for drawn in chosen[first:last] for site in drawn)
    assert max(turns.values()) - min(turns[site] for site in sites) <= 1


def test_round_robin_depends_on_the_seed_by_where_it_begins():
  assert select("round_robin", SITES, 1, 0, 1) != select("round_robin", SITES, 1, 1, 1)


def power_of_choice(sites, count, seed, round):
  """Cho et al. 2020, rpow-d, in the plainest form."""
  candidates = select("size", sites, min(2 * count, len(sites)), seed, round)
  losses = {name: math.inf if sites[name].loss is None else sites[name].loss for name in candidates}
  return candidates, sorted(candidates, key=lambda name: -losses[name])[:count]


@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_power_of_choice_takes_the_highest_losses_of_its_candidates(count):
  rng = np.random.default_rng(0)
  sites = {f"s{i:02d}": Candidate(int(rng.integers(1, 50)), float(rng.random())) for i in range(11)}
  for round in range(30):
    _, chosen = power_of_choice(sites, count, 4, round)
    assert select("power_of_choice", sites, count, 4, round) == sorted(chosen)


def test_power_of_choice_first_takes_sites_that_have_not_trained():
  sites = {f"s{i}": Candidate(10, None if i < 3 else 1e9) for i in range(8)}
  for round in range(20):
    candidates, _ = power_of_choice(sites, 2, 0, round)
    new = {name for name in candidates if sites[name].loss is None}
    chosen = set(select("power_of_choice", sites, 2, 0, round))
    assert len(chosen & new) == min(2, len(new))


def test_power_of_choice_breaks_ties_at_random():
  sites = {f"s{i}": Candidate(10, 0.5) for i in range(4)}
  counts = Counter(
    site for round in range(400) for site in select("power_of_choice", sites, 2, 0, round)
  )
  assert all(150 < counts[site] < 250 for site in sites)


def test_poisson_sample_are_fair_and_independent():
  sites = [f"site_{i}" for i in range(50)]
  drawn = [poisson_sample(sites, 0.2, key, 1) for key in range(400)]
  sizes = np.array([len(names) for names in drawn])
  assert 1e-7 < stats.binom(50 * 400, 0.2).cdf(sizes.sum()) < 1 - 1e-7
  assert sizes.var() == pytest.approx(50 * 0.2 * 0.8, rel=0.3)  # of independent ones
  assert (
    poisson_sample(sites, 1.0, 7, 1) == sorted(sites) and poisson_sample(sites, 0.0, 7, 1) == []
  )
