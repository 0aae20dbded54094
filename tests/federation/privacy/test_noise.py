"""The noise is normal, of the asked size, and never the same."""

import os
import secrets

import numpy as np
import pytest
from scipy import stats

from afspl_jax.federation.privacy import noise
from afspl_jax.federation.privacy.noise import gaussian, noisy, snapped

_CHANCE = 1e-7  # of a false alarm, a test


def test_noise_is_normal_with_the_asked_standard_deviation():
  draws = gaussian((400, 500), 3.0)
  assert draws.shape == (400, 500) and draws.dtype == np.float64
  assert stats.kstest(draws.ravel() / 3, "norm").pvalue > _CHANCE
  spread = np.sum(draws**2) / 9
  assert _CHANCE < stats.chi2(draws.size).cdf(spread) < 1 - _CHANCE
  beyond = int(np.sum(np.abs(draws) > 4 * 3))  # the tails, which the others hardly see
  assert _CHANCE < stats.binom(draws.size, 2 * stats.norm.sf(4)).cdf(beyond) < 1 - _CHANCE / 2


def test_numbers_are_independent_of_their_neighbours():
  draws = gaussian((100_000,), 1.0)
  for lag in (1, 2, 16):
    assert abs(np.mean(draws[lag:] * draws[:-lag])) < 6 / np.sqrt(len(draws))


def test_no_two_calls_give_the_same_noise_whatever_is_seeded(monkeypatch):
  keys = []
  monkeypatch.setattr(os, "urandom", lambda size: keys.append(size) or secrets.token_bytes(size))
  np.random.seed(0)
  first = gaussian((1000,), 1.0)
  np.random.seed(0)
  assert not np.intersect1d(first, gaussian((1000,), 1.0)).size
  assert keys == [32, 32]  # the system is asked for each


def test_the_extremes_of_the_stream_are_finite(monkeypatch):
  class Stream:
    def __init__(self, byte):
      self.byte = byte

    def encryptor(self):
      return self

    def update(self, data):
      return bytes([self.byte]) * len(data)

  for byte, sign in ((0, -1), (255, 1)):
    monkeypatch.setattr(noise, "Cipher", lambda *_, byte=byte: Stream(byte))
    assert 8 < sign * gaussian((), 1.0) < 8.3


def test_snapped_numbers_lie_on_one_grid_whatever_was_below_it():
  values = np.random.default_rng(0).normal(size=1000)
  grid = 2.0**-11  # of a standard deviation from 1/2 to 1
  kept = snapped(values, 0.6)
  assert np.all(kept % grid == 0) and np.abs(kept - values).max() <= grid / 2
  np.testing.assert_array_equal(snapped(kept + 0.4 * grid, 0.6), kept)
  np.testing.assert_array_equal(snapped(values, 0.0), values)


def test_every_leaf_has_noise_of_its_own_and_none_without_a_deviation():
  tree = {"a": np.ones((100, 2)), "b": np.ones((100, 2))}
  moved = noisy(tree, 0.5)
  assert np.unique(moved["a"]).size > 150  # a few meet on the grid
  assert np.count_nonzero(moved["a"] == moved["b"]) < 10
  assert noisy(tree, 0.0) is tree


@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_shapes(shape):
  assert gaussian(shape, 1.0).shape == shape
