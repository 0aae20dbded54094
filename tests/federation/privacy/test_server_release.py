"""The server's half of privacy: what one client can do to the mean, and the noise on it."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from afspl_jax.config.experiment import Uplink
from afspl_jax.federation.contracts import WITHIN, Rejected, Update
from afspl_jax.federation.privacy.budget import LEDGER
from afspl_jax.federation.privacy.clipping import norm
from afspl_jax.federation.privacy.ledger import Ledger
from afspl_jax.federation.privacy.server_release import Release, total_of
from afspl_jax.federation.protocol import uplink
from tests.federation.least_squares import CLIENTS
from tests.federation.privacy.private_settings import (
  CHANCE,
  START,
  constant,
  settings_of,
  update_of,
)


def replies_of(updates):
  add = lambda old, u: (old + u).astype(np.float32)  # noqa: E731
  rows = uplink.everywhere(START)
  return [
    Update(f"site_{i}", jax.tree.map(add, START, u), rows, 1, {}) for i, u in enumerate(updates)
  ]


def flat(tree):
  return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def total(updates, bound):
  return total_of(START, replies_of(updates), bound)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=6), st.floats(0.1, 10))
def test_no_client_moves_the_mean_by_more_than_the_bound(tmp_path_factory, values, bound):
  """Of the released mean, without its noise; the others' updates are the same with and without."""
  file = tmp_path_factory.mktemp("release") / LEDGER
  release = Release(settings_of(clip=bound), Ledger(file))

  def mean(values):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr("afspl_jax.federation.privacy.server_release.noisy", lambda update, std: update)
      mean, _, _ = release.combine(START, total(map(constant, values), bound), bound, 1, ["a"])
    return mean.params

  moved = jax.tree.map(np.subtract, mean(values), mean(values[:-1]))
  assert norm(moved) <= bound / CLIENTS * (1 + 1e-3) + 1e-6  # float32's rounding


def test_the_released_mean_has_the_promised_noise(ledger):
  config = settings_of(noise=3.0, clip=0.5)
  release, draws = Release(config, ledger), []
  for _ in range(60):
    mean, metrics, _ = release.combine(START, total([constant(0.0)] * 2, 0.5), 0.5, 1, ["a", "b"])
    draws += [leaf.ravel() for leaf in jax.tree.leaves(update_of(mean.params))]
  draws = np.concatenate(draws) / (3.0 * 0.5 / CLIENTS)
  spread = stats.chi2(draws.size).cdf(np.sum(draws**2))
  assert CHANCE < spread < 1 - CHANCE
  assert stats.kstest(draws, "norm").pvalue > CHANCE
  assert metrics["clip"] == 0.5


def test_rows_that_are_not_sent_have_no_noise(ledger):
  config = settings_of()
  config = dataclasses.replace(config, uplink=Uplink("shared", ratio=0.5))
  rows = uplink.shared_rows(START, config.uplink, (config.seed, 3))
  reply = Update("a", START, rows, 1, {})
  release = Release(config, ledger)
  assert release.screen(reply, 3) == reply
  mean, _, _ = release.combine(START, total_of(START, [reply], 1.0), 1.0, 3, ["a"])
  moved = flat(jax.tree.map(np.not_equal, mean.params, START))
  sent = flat(jax.tree.map(np.broadcast_to, rows, jax.tree.map(np.shape, START)))
  assert not np.any(moved & ~sent)
  assert np.sum(moved) >= np.sum(sent) - 3  # float32 may lose a small one
  with pytest.raises(Rejected, match="rows that all send"):
    release.screen(reply, 4)


def test_of_the_noisy_count_too_low_digits_tell_nothing(ledger):
  release = Release(settings_of(clipping="adaptive", noise=1.4), ledger)
  reply = replies_of([constant(0.0)])[0]._replace(metrics={WITHIN: 1.0})
  step = 1.4 / 2**32  # the count's noise, too: of so few clients it is that of the updates
  noise = []
  for clients in (1, 3, 4):
    _, metrics, _ = release.combine(START, total_of(START, [reply] * clients, 1.0), 1.0, 1, ["a"])
    count = (metrics[WITHIN] - 0.5) * CLIENTS
    assert abs(count / step - np.rint(count / step)) < 1e-4  # float64 rounds the share
    noise.append(count - clients / 2)
  assert any(noise)


@pytest.mark.parametrize(
  ("given_", "metrics", "examples"),
  [
    ("fixed", {"loss": 1.0}, 1),
    ("fixed", {}, 2),
    ("adaptive", {}, 1),
    ("adaptive", {WITHIN: 5.0}, 1),
  ],
)
def test_replies_that_say_more_or_weigh_more_are_rejected(given_, metrics, examples, ledger):
  release = Release(settings_of(clipping=given_), ledger)
  with pytest.raises(Rejected):
    release.screen(Update("a", START, uplink.everywhere(START), examples, metrics), 1)
