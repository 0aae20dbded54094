"""No update moves a sum by more than the bound, whatever its sender did."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afspl_jax.federation.privacy.clipping import Adaptive, clip, norm

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(FLOATS, min_size=6, max_size=6), st.floats(1e-6, 1e6))
def test_every_finite_update_is_brought_within_the_bound(numbers, bound):
  update = {"a": np.array(numbers[:4], np.float32).reshape(2, 2), "b": np.float32(numbers[4])}
  clipped, was_larger = clip(update, bound)
  assert norm(clipped) <= bound * (1 + 1e-12)
  assert was_larger == (norm(update) > bound)
  if not was_larger:
    jax.tree.map(np.testing.assert_array_equal, clipped, update)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, 1e300])
def test_an_update_without_a_finite_norm_counts_as_none(bad):
  clipped, _ = clip({"a": np.array([1.0, bad])}, 1.0)
  assert norm(clipped) == 0


def test_a_larger_update_keeps_its_direction():
  clipped, was_larger = clip({"a": np.array([3.0, 4.0])}, 1.0)
  np.testing.assert_allclose(clipped["a"], [0.6, 0.8])
  assert was_larger


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.8])
def test_without_noise_the_bound_goes_to_the_quantile(quantile):
  norms = np.random.default_rng(0).lognormal(1, 1, 501)
  adaptive, bound = Adaptive(quantile, 0.2, len(norms)), 0.01
  for _ in range(300):
    bound = adaptive.next(bound, float(np.mean(norms <= bound)))
  assert bound == pytest.approx(np.quantile(norms, quantile), rel=0.05)


@pytest.mark.parametrize(("clients", "noise"), [(10, 3.0), (100, 3.0), (1000, 0.5)])
def test_both_releases_together_cost_what_one_with_the_asked_noise_does(clients, noise):
  """Of two Gaussian mechanisms, the squares of sensitivity over deviation add up."""
  adaptive = Adaptive(0.5, 0.2, clients)
  ours, count = adaptive.update_noise(noise), adaptive.count_noise(noise)
  assert 1 / ours**2 + (0.5 / count) ** 2 == pytest.approx(1 / noise**2)
  assert noise < ours < 1.2 * noise
  assert count >= clients / 20
