"""Noise on values: what rounding to its grid does, and what the account says of it."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from afspl_jax.federation.privacy import noise
from afspl_jax.federation.privacy.discrete_gaussian import discrete_gaussian
from afspl_jax.federation.privacy.noise import coarse_noise, coarse_step, noisy

_CHANCE = 1e-7  # of a false alarm, a test


@pytest.fixture
def silent(monkeypatch):
  """Only the rounding is left of the noise."""
  monkeypatch.setattr(noise, "discrete_gaussian", lambda size, bits: np.zeros(size, np.int64))


def test_noise_has_the_asked_standard_deviation():
  values = np.linspace(-5, 5, 100_000)
  draws = noisy(values, 3.0) - values
  assert stats.kstest(draws / 3, "norm").pvalue > _CHANCE
  spread = np.sum(draws**2) / 9
  assert _CHANCE < stats.chi2(draws.size).cdf(spread) < 1 - _CHANCE


def test_noisy_numbers_lie_on_a_grid_that_only_the_noise_determines():
  values = np.random.default_rng(0).normal(size=1000)
  steps = noisy(values, 0.5) / (0.5 / 2**32)
  np.testing.assert_array_equal(steps, np.rint(steps))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=20), st.floats(1e-3, 1e3), st.data())
def test_rounding_adds_no_more_to_what_a_client_does_than_the_account_says(ones, std, data):
  others = data.draw(st.lists(st.floats(-9, 9), min_size=len(ones), max_size=len(ones)))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(noise, "discrete_gaussian", lambda size, bits: np.zeros(size, np.int64))
    with_it, without = (noisy(np.array(each), std) for each in (np.add(ones, others), others))
  moved = np.linalg.norm(np.subtract(with_it, without))
  share = np.sqrt(len(ones) / noise.MOST_NUMBERS)  # of the most numbers
  assert moved <= np.linalg.norm(ones) + noise.ROUNDED * std * share + 1e-14


def test_the_discrete_and_the_rounded_normal_distribution_are_as_close_as_the_account_says():
  """The bounds that UNEVEN is made of, at standard deviations where they can be seen."""
  for sigma in (2.0, 8.0, 64.0):
    y = np.arange(-8 * sigma, 8 * sigma + 1)
    discrete = stats.norm.pdf(y, scale=sigma)  # up to 2 exp(-2 pi**2 sigma**2), their sum is 1
    edges = np.minimum(y, -y) + 0.5, np.minimum(y, -y) - 0.5  # in the lower tail: no cancellation
    rounded = -np.diff(stats.norm.cdf(edges, scale=sigma), axis=0)[0]
    ratio = np.log(rounded / discrete)
    slack = 1e-12
    assert np.all(ratio >= -1 / (8 * sigma**2) - slack)
    assert np.all(ratio <= y**2 / (8 * sigma**4) + slack)
    assert np.abs(ratio).max() > 1 / (100 * sigma**2)  # it is a difference that is seen
  beyond = 40**2 / 8 / 2.0**64
  assert 2 * noise.MOST_NUMBERS * beyond <= noise.UNEVEN
  assert np.sqrt(2 * noise.MOST_NUMBERS) / 2**32 <= noise.ROUNDED


def test_coarse_noise_is_the_finer_rounded(monkeypatch):
  fine = discrete_gaussian(10_000)
  monkeypatch.setattr(noise, "discrete_gaussian", lambda size, bits: fine)
  coarse = coarse_noise((100, 100))
  assert coarse.dtype == np.int32 and coarse.shape == (100, 100)
  np.testing.assert_array_equal(coarse.ravel(), np.floor(fine / 2.0**16 + 0.5))
  sums = np.arange(10_000, dtype=np.int64)  # on the coarse grid: rounding commutes with the sum
  both = np.floor((sums * 2**16 + fine) / 2.0**16 + 0.5)
  np.testing.assert_array_equal(both, sums + coarse.ravel())


def test_coarse_noise_has_the_standard_deviation_that_its_step_says():
  draws = coarse_noise((200_000,)) * coarse_step(3.0) / 3.0
  assert _CHANCE < stats.chi2(draws.size).cdf(np.sum(draws**2)) < 1 - _CHANCE
  assert stats.kstest(draws, "norm").pvalue > _CHANCE


def test_every_leaf_has_noise_of_its_own_and_none_without_a_deviation():
  tree = {"a": np.ones((100, 2)), "b": np.ones((100, 2))}
  moved = noisy(tree, 0.5)
  assert np.unique(np.concatenate(jax.tree.leaves(moved))).size == 400
  assert noisy(tree, 0.0) is tree


def test_releases_that_the_account_does_not_cover_are_rejected(monkeypatch):
  monkeypatch.setattr(noise, "MOST_NUMBERS", 10)
  with pytest.raises(ValueError, match="expected at most 10 numbers in a release; got 11"):
    noisy({"a": np.zeros(5), "b": np.zeros(6)}, 1.0)


def test_a_value_that_the_noise_is_far_too_small_for_is_rejected():
  with pytest.raises(ValueError, match=r"expected numbers below .*; got 1$"):
    noisy(np.ones(3), 1e-12)


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_shapes(shape):
  assert noisy(np.zeros(shape), 1.0).shape == shape
