"""The sampler gives the discrete Gaussian itself, against its probabilities and moments."""

import os
import secrets
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from afspl_jax.federation.privacy import discrete_gaussian as module
from afspl_jax.federation.privacy.discrete_gaussian import (
  Bits,
  block_of,
  discrete_gaussian,
  thresholds,
)

SIZE = 200_000


@pytest.fixture(autouse=True)
def _fixed_keys(monkeypatch):
  """Draws that are the same in every run: a p-value is then as likely to fail as the code is."""
  keys = iter(range(1000))
  monkeypatch.setattr(os, "urandom", lambda size: next(keys).to_bytes(size, "big"))


def probabilities(sigma):
  """Of the integers from -9 sigma to 9 sigma; beyond lies less than 1e-17."""
  y = np.arange(-9 * sigma, 9 * sigma + 1)
  weights = np.exp(-(y.astype(float) ** 2) / (2 * sigma**2))
  return y, weights / weights.sum()


@pytest.mark.parametrize("sigma_bits", [0, 1, 2, 5])
def test_every_integer_has_its_probability(sigma_bits):
  draws = discrete_gaussian(SIZE, sigma_bits)
  y, expected = probabilities(2**sigma_bits)
  often = expected * SIZE >= 10
  counts = np.array([np.count_nonzero(draws == each) for each in y[often]])
  counts = np.append(counts, SIZE - counts.sum())
  expected = np.append(expected[often], 1 - expected[often].sum()) * SIZE
  assert stats.chisquare(counts, expected).pvalue > 1e-3


def test_moments_of_the_smallest_are_those_of_the_series():
  draws = discrete_gaussian(SIZE, 0)
  y, p = probabilities(1)
  for power in (1, 2, 3, 4):
    mean = np.sum(p * y**power)
    spread = np.sqrt(np.sum(p * y ** (2.0 * power)) - mean**2)
    assert abs(np.mean(draws**power) - mean) < 4 * spread / np.sqrt(SIZE)


def test_draws_of_the_standard_deviation_of_releases_pass_tests_of_normality():
  draws = discrete_gaussian(SIZE) / 2.0**32
  assert stats.kstest(draws, "norm").pvalue > 1e-3
  assert abs(draws.sum()) < 4 * np.sqrt(SIZE)
  assert 1e-3 < stats.chi2(SIZE).cdf(np.sum(draws**2)) < 1 - 1e-3
  for beyond in (2, 3, 4):
    found = np.count_nonzero(np.abs(draws) > beyond)
    assert stats.binomtest(found, SIZE, 2 * stats.norm.sf(beyond)).pvalue > 1e-3
  low = discrete_gaussian(SIZE) & 0xFF  # the last digits are uniform
  assert stats.chisquare(np.bincount(low, minlength=256)).pvalue > 1e-3
  for lag in (1, 2, 16):
    assert abs(np.mean(draws[lag:] * draws[:-lag])) < 4 / np.sqrt(SIZE)


def test_a_block_is_decided_by_as_many_digits_as_it_takes(monkeypatch):
  """With 2 binary digits at first, most words are on a threshold and need more."""

  class Counted(Bits):
    asked = 0

    def words(self, size, dtype=np.uint32):
      Counted.asked += size
      return super().words(size, dtype)

  bits = Counted()
  first = np.random.default_rng(0).integers(0, 4, 4000)
  blocks = np.array([block_of(int(word), 2, bits) for word in first])
  assert Counted.asked > 1000
  weights = np.exp(-(np.arange(5.0) ** 2) / 2)
  expected = np.append(weights[:4], weights[4:].sum())
  counts = np.bincount(np.minimum(blocks, 4), minlength=5)
  assert stats.chisquare(
    counts[:4], expected[:4] / expected[:4].sum() * counts[:4].sum()
  ).pvalue > (1e-3)
  assert counts[4] <= 10


def test_a_word_on_a_threshold_is_decided_by_the_next_digits():
  below, finer = thresholds(64), thresholds(128)

  class Fixed(Bits):
    def __init__(self, word):
      self.word = word

    def words(self, size, dtype=np.uint32):
      return np.array([self.word], dtype)

  for v in range(3):
    rest = finer[v] - (below[v] << 64)
    assert block_of(below[v], 64, Fixed(rest - 1)) == v
    assert block_of(below[v], 64, Fixed(rest + 1)) == v + 1


def test_thresholds_are_the_true_probabilities_cut_off():
  exact = [Fraction(each, 2**512) for each in thresholds(512)]
  for digits in (8, 64, 128):
    found = thresholds(digits)
    assert found == tuple(int(each * 2**digits) for each in exact[: len(found)])
    assert found[-1] == 2**digits - 1
  weights = [float((-Decimal(v * v) / 2).exp()) for v in range(30)]
  np.testing.assert_allclose(
    [float(each) for each in exact[:9]], np.cumsum(weights)[:9] / sum(weights), rtol=1e-15
  )


@pytest.mark.parametrize("number", [1, 2, 3, 5, 7, 8, 2**31 + 1])
def test_one_in_a_number_is_exact_also_where_words_cannot_be_shared_evenly(number):
  found = np.count_nonzero(module._one_in(Bits(), number, SIZE))
  assert stats.binomtest(found, SIZE, 1 / number).pvalue > 1e-3


def test_no_two_calls_give_the_same_noise_whatever_is_seeded(monkeypatch):
  keys = []
  monkeypatch.setattr(os, "urandom", lambda size: keys.append(size) or secrets.token_bytes(size))
  np.random.seed(0)
  first = discrete_gaussian(1000)
  np.random.seed(0)
  assert not np.intersect1d(first, discrete_gaussian(1000)).size
  assert keys == [32, 32]  # the system is asked for each


@pytest.mark.parametrize("size", [0, 1, 100_001])
def test_sizes(size):
  assert discrete_gaussian(size).shape == (size,)
