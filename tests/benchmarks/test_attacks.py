"""Attacks on privacy: their rates are right, and their success stays below the claimed bounds."""

import numpy as np
import pytest
from scipy import stats

from afspl_jax.config.experiment import Experiment, Privacy
from afspl_jax.config.fields import changed
from afspl_jax.federation.contracts import Update
from afspl_jax.federation.privacy import accounting
from afspl_jax.federation.privacy.accounting import Mechanism
from afspl_jax.federation.privacy.ledger import Ledger
from afspl_jax.federation.privacy.server_release import Release, total_of
from afspl_jax.federation.protocol import uplink
from benchmarks.attacks import least_epsilon, success

CLIENTS, DELTA, TRIALS, NOISE = 4, 1e-3, 1000, 0.7


def test_rates_equal_those_of_two_normal_distributions():
  rng = np.random.default_rng(0)
  found = success(rng.normal(1.5, 1, 100_000), rng.normal(0, 1, 50_000))
  assert found.auc == pytest.approx(stats.norm.cdf(1.5 / 2**0.5), abs=0.005)
  assert found.tpr == pytest.approx(stats.norm.sf(stats.norm.isf(0.01) - 1.5), abs=0.01)
  assert found.accuracy == pytest.approx(stats.norm.cdf(0.75), abs=0.005)


def test_a_guess_finds_half_and_a_perfect_score_finds_all():
  same = success(np.zeros(30), np.zeros(50))
  assert same == (0.5, 0.0, 0.5)
  assert success(np.arange(10, 20), np.arange(10)) == (1.0, 1.0, 1.0)


def test_the_least_epsilon_of_randomised_response_is_just_below_the_true_one():
  rng, epsilon = np.random.default_rng(0), 1.0
  told = rng.random((2, 100_000)) < np.array([[np.e], [1.0]]) / (1 + np.e)
  assert 0.95 * epsilon < least_epsilon(*told, delta=0.0) <= epsilon
  assert least_epsilon(told[0], told[0], delta=0.0) == 0
  few = np.arange(50) < 20  # bounds of a share, as of a test of it
  low = stats.binomtest(20, 50).proportion_ci(0.95).low
  high = stats.binomtest(0, 50).proportion_ci(0.95).high
  assert least_epsilon(few, few & False, 0.0) == pytest.approx(np.log(low / high), rel=1e-6)


class Counted(Ledger):
  """Of a first release, whatever was released."""

  def __init__(self):
    pass

  def charge(self, sites):
    pass

  def most(self, sites=()):
    return 1


def canary_seen(noise: float, present: bool, trials: int):
  """How far rounds went where an adversary's update points, who is one of CLIENTS or not here."""
  fields = {
    "privacy.dp": "central",
    "privacy.noise": NOISE,
    "privacy.delta": DELTA,
    "uplink.select": "dense",
    "data.num_clients": CLIENTS,
    "fed.clients_per_round": CLIENTS,
  }
  release = Release(changed(Experiment(), fields), Counted())
  release.noise = noise
  rng = np.random.default_rng(int(present))
  start = {"w": rng.normal(size=(8, 8)).astype(np.float32)}
  direction = np.zeros((8, 8), np.float32)
  direction[2, 3] = 1.0
  masks = uplink.everywhere(start)
  honest = [rng.normal(size=(8, 8)).astype(np.float32) for _ in range(CLIENTS - 1)]
  updates = [each * (direction == 0) for each in honest] + [1e6 * direction] * present
  replies = [
    Update(f"site_{i}", {"w": start["w"] + update}, masks, 1, {})
    for i, update in enumerate(updates)
  ]
  moved = []
  for _ in range(trials):
    bound = release.bound({})
    total = total_of(start, replies, bound)
    mean, _, _ = release.combine(start, total, bound, 1, ())
    moved.append(CLIENTS * np.sum((mean.params["w"] - start["w"]) * direction))
  return np.array(moved)


def test_a_canary_client_is_detected_no_better_than_epsilon_allows():
  bar = 0.5 + NOISE  # chosen before looking: there few are told wrongly, and many rightly
  guesses = [canary_seen(NOISE, present, TRIALS) > bar for present in (True, False)]
  found = least_epsilon(*guesses, DELTA, confidence=1 - 1e-6)
  claimed = accounting.epsilon(Mechanism(NOISE), 1, DELTA)
  assert 0.3 < found <= claimed


def test_without_noise_the_canary_is_always_detected_and_moves_the_sum_by_the_bound():
  with_it, without = (canary_seen(0.0, present, 3) for present in (True, False))
  np.testing.assert_allclose(with_it, Privacy().clip, rtol=1e-5)
  np.testing.assert_allclose(without, 0.0, atol=1e-6)
