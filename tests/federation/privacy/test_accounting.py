"""Epsilon, against closed formulas and published values."""

import math

import numpy as np
import pytest
from scipy import optimize, special, stats

from afspl_jax.errors import UserError
from afspl_jax.federation.privacy.accounting import Mechanism, _epsilon, epsilon, noise_for


def gaussian_delta(eps, noise):
  """Balle and Wang 2018, "Improving the Gaussian Mechanism for Differential Privacy", theorem 8."""
  a, b = 1 / (2 * noise) - eps * noise, -1 / (2 * noise) - eps * noise
  return stats.norm.cdf(a) - math.exp(eps) * stats.norm.cdf(b)


def sampled_delta(eps, noise, q):
  """The hockey-stick divergence of one Poisson-subsampled Gaussian release.

  The mixture (1 - q) N(0) + q N(1) over N(0) is a rising function of x, so where it crosses
  exp(eps) or exp(-eps) all lies on one side.
  """

  def crossing(ratio):
    return noise**2 * math.log((ratio - 1 + q) / q) + 0.5

  plain, moved = stats.norm(0, noise), stats.norm(1, noise)
  x = crossing(math.exp(eps))
  added = (1 - q - math.exp(eps)) * plain.sf(x) + q * moved.sf(x)
  if math.exp(-eps) <= 1 - q:
    return added
  x = crossing(math.exp(-eps))
  mixed = (1 - q) * plain.cdf(x) + q * moved.cdf(x)
  return max(added, plain.cdf(x) - math.exp(eps) * mixed)


def moments_epsilon(noise, q, steps, delta):
  """Mironov, Talwar and Zhang 2019, section 3.3, at whole orders; Mironov 2017, proposition 3."""

  def of_order(order):
    terms = [
      math.log(special.comb(order, k))
      + k * math.log(q)
      + (order - k) * math.log1p(-q)
      + (k * k - k) / (2 * noise**2)
      for k in range(order + 1)
    ]
    return steps * special.logsumexp(terms) / (order - 1) + math.log(1 / delta) / (order - 1)

  return min(map(of_order, range(2, 200)))


@pytest.mark.parametrize(("noise", "times"), [(1.0, 1), (4.0, 30), (0.6, 5)])
def test_releases_that_all_take_part_in_cost_what_the_closed_formula_says(noise, times):
  alone = noise / math.sqrt(times)
  exact = optimize.brentq(lambda eps: gaussian_delta(eps, alone) - 1e-5, 0, 100)
  assert exact <= epsilon(Mechanism(noise), times, 1e-5) <= exact + 2e-3
  assert exact <= epsilon(Mechanism(noise), times, 1e-5, "rdp") <= 1.15 * exact


def test_the_published_noise_of_epsilon_one():
  assert noise_for(1.0, 1e-5, 1.0, 1) == pytest.approx(3.7306, abs=2e-3)  # Balle and Wang


@pytest.mark.parametrize("q", [0.01, 0.1, 0.5])
def test_a_release_to_secretly_drawn_clients_costs_what_quadrature_says(q):
  eps = epsilon(Mechanism(1.0, q), 1, 1e-5)
  assert sampled_delta(eps + 1e-9, 1.0, q) <= 1e-5 * (1 + 1e-6)
  assert sampled_delta(eps - 1e-3, 1.0, q) > 1e-5


def test_the_moments_accountants_published_value_bounds_ours():
  """Abadi et al. 2016, section 3.2: q = 0.01, noise 4, 10,000 steps, delta 1e-5: 1.26."""
  published = moments_epsilon(4.0, 0.01, 10_000, 1e-5)
  assert published == pytest.approx(1.26, abs=5e-3)
  mechanism = Mechanism(4.0, 0.01)
  tight, loose = (epsilon(mechanism, 10_000, 1e-5, method) for method in ("pld", "rdp"))
  assert 0.7 * published < tight < loose < published


def test_the_calibrated_noise_is_the_least_that_pays():
  noise = noise_for(2.0, 1e-6, 0.1, 20)
  assert epsilon(Mechanism(noise, 0.1), 20, 1e-6) <= 2.0
  assert epsilon(Mechanism(noise - 5e-3, 0.1), 20, 1e-6) > 2.0


def test_nothing_costs_nothing_and_no_noise_everything():
  assert epsilon(Mechanism(1.0), 0, 1e-5) == 0
  assert epsilon(Mechanism(0.0), 1, 1e-5) == math.inf


def discrete_delta(eps, sigma, shift):
  """Canonne, Kamath and Steinke 2020, theorem 7: of one number, by the two tails' series."""
  y = np.arange(-60 * sigma, 60 * sigma + 1)
  p = np.exp(-(y.astype(float) ** 2) / (2 * sigma**2))
  p /= p.sum()
  edge = eps * sigma**2 / shift - shift / 2
  return p[y > edge].sum() - math.exp(eps) * p[y > edge + shift].sum()


@pytest.mark.parametrize("noise", [0.5, 1.0, 4.0])
def test_the_epsilon_covers_the_discrete_noise(noise):
  """Against the sums themselves, at a sigma of 2**16 steps."""
  eps = epsilon(Mechanism(noise), 1, 1e-5)
  sigma = 2**16
  assert discrete_delta(eps, sigma, round(sigma / noise)) <= 1e-5
  assert discrete_delta(eps - 5e-3, sigma, round(sigma / noise)) > 1e-5


def test_what_the_grid_costs_is_in_the_epsilon():
  once = epsilon(Mechanism(2.0), 1, 1e-5, "rdp")
  alone = _epsilon(Mechanism(2.0), 1, 1e-5, "rdp")  # of normal noise
  assert alone < once < alone + 1e-4
  # With more noise the grid is coarser beside the bound: no noise makes a release cost nothing.
  assert epsilon(Mechanism(1e300), 1, 1e-5) == epsilon(Mechanism(1e200), 1, 1e-5) > 0


@pytest.mark.parametrize("method", ["pld", "rdp"])
def test_epsilon_at_its_edges_is_finite_and_monotone(method):
  """A client that is in every sample, one release, tiny and huge noise, tiny and large delta."""

  def along(values, case):
    found = [epsilon(*case(value), method) for value in values]
    assert all(map(math.isfinite, found)) and min(found) >= 0
    return np.diff(found)

  noises = (1e-12, 1e-3, 0.02, 0.3, 1.0, 1e3, 1e6)
  for q in (0.3, 1.0):
    assert np.all(along(noises, lambda noise, q=q: (Mechanism(noise, q), 1, 1e-5)) <= 0)
    times = (0, 1, 2, 10, 1000, 100_000)
    assert np.all(along(times, lambda times, q=q: (Mechanism(1.0, q), times, 1e-5)) >= 0)
    deltas = (1e-300, 1e-20, 1e-14, 1e-9, 1e-5, 0.1, 1 - 1e-9)
    assert np.all(along(deltas, lambda delta, q=q: (Mechanism(1.0, q), 1, delta)) <= 0)
  shares = (0.0, 1e-12, 1e-3, 0.5, 0.999, 1.0)
  assert np.all(along(shares, lambda q: (Mechanism(1.0, q), 3, 1e-5)) >= 0)


def test_sampling_everyone_costs_what_known_participants_pay():
  for times in (1, 7):
    everyone = epsilon(Mechanism(1.5, 1 - 1e-12), times, 1e-5)
    assert everyone == pytest.approx(epsilon(Mechanism(1.5), times, 1e-5), rel=1e-3)


@pytest.mark.parametrize(
  "mechanism, times, delta",
  [
    (Mechanism(1.0), 1, 1.0),
    (Mechanism(1.0), 1, 1.5),
    (Mechanism(1.0), 1, 0.0),
    (Mechanism(1.0), 1, math.nan),
    (Mechanism(-1.0), 1, 1e-5),
    (Mechanism(math.nan), 1, 1e-5),
    (Mechanism(1.0, 1.1), 1, 1e-5),
    (Mechanism(1.0), -1, 1e-5),
  ],
)
def test_what_has_no_meaning_is_rejected(mechanism, times, delta):
  with pytest.raises(ValueError, match="privacy: expected noise and times of at least 0"):
    epsilon(mechanism, times, delta)


@pytest.mark.parametrize("q", [0.3, 1.0])
def test_noise_for_small_and_huge_budgets_is_the_least_and_is_found(q):
  for budget in (1e-4, 1e6):
    noise = noise_for(budget, 1e-5, q, 1)
    assert epsilon(Mechanism(noise, q), 1, 1e-5) <= budget
    assert epsilon(Mechanism(noise * 0.99, q), 1, 1e-5) > budget


def test_a_budget_that_no_noise_stays_within_is_rejected():
  with pytest.raises(UserError, match=r"privacy.epsilon: expected a budget .* got 1e-09"):
    noise_for(1e-9, 1e-5, 1.0, 1)
