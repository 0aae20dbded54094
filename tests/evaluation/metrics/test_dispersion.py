import numpy as np
import pytest

from afspl_jax.evaluation.metrics.dispersion import measure_dispersion


def test_the_worst_tenth_is_a_mean_of_the_lowest_and_at_least_one():
  assert measure_dispersion([3.0, 1.0, 2.0]).worst == 1.0
  assert measure_dispersion(np.arange(30.0)[::-1].tolist()).worst == 1.0  # of 0, 1 and 2
  assert measure_dispersion(np.arange(25.0).tolist()).worst == 1.0  # no fewer than a tenth


def test_gini_is_the_mean_difference_of_pairs_over_twice_the_mean():
  values = np.random.default_rng(0).gamma(1.0, size=17)
  pairs = np.abs(values[:, None] - values[None]).mean()
  assert measure_dispersion(values.tolist()).gini == pytest.approx(pairs / (2 * values.mean()))
  assert measure_dispersion([2.0] * 5).gini == 0
  assert measure_dispersion([0.0] * 9 + [1.0]).gini == pytest.approx(0.9)


def test_mean_and_sd_count_every_client_once():
  found = measure_dispersion([1.0, 1.0, 4.0])
  assert (found.clients, found.mean, found.sd) == (3, 2.0, pytest.approx(np.sqrt(2)))
  assert measure_dispersion([0.0, 0.0]).gini == 0


@pytest.mark.parametrize("scores", [[], [-0.1, 1.0], [float("nan"), 1.0], [float("inf")]])
def test_an_invalid_score_is_an_error(scores):
  with pytest.raises(ValueError, match="scores of clients"):
    measure_dispersion(scores)
