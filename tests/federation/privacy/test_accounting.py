"""Epsilon, against closed formulas and published values."""

import math

import pytest
from scipy import optimize, special, stats

from afspl_jax.federation.privacy.accounting import Mechanism, epsilon, noise_for


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
