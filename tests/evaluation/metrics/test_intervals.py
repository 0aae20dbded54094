import numpy as np
import pytest
from scipy.stats import bootstrap as scipy_bootstrap

from afspl_jax.evaluation.metrics.bleu import bleu, bleu_from_counts
from afspl_jax.evaluation.metrics.intervals import RESAMPLES, bootstrap

WORDS = np.array(["a", "the", "dog", "cat", "runs", "sleeps", "on", "grass", "sofa"])


def test_intervals_of_a_mean_are_scipys():
  items = np.random.default_rng(0).gamma(2.0, size=200)
  (found,) = bootstrap(items[:, None], [str(i) for i in range(200)])
  wanted = scipy_bootstrap(
    (items,), np.mean, n_resamples=9999, method="percentile", rng=np.random.default_rng(1)
  ).confidence_interval
  # Ends of 1,000 resamples scatter by some percent of the interval's width.
  tolerance = 0.06 * (wanted.high - wanted.low)
  np.testing.assert_allclose(found, [wanted.low, wanted.high], atol=tolerance, rtol=0)


def test_intervals_of_bleu_are_those_of_whole_corpora_scored_again():
  rng = np.random.default_rng(0)
  texts = [[list(rng.choice(WORDS, rng.integers(4, 9))) for _ in range(3)] for _ in range(12)]
  predictions, references = [group[0] for group in texts], [group[1:] for group in texts]
  counts = bleu(predictions, references).counts
  found = bootstrap(
    counts, [str(i) for i in range(12)], lambda sums, _: bleu_from_counts(sums), seed=3
  )
  rng = np.random.default_rng(3)
  drawn = np.concatenate([rng.integers(12, size=(100, 12)) for _ in range(RESAMPLES // 100)])
  order = np.argsort([f"{i}" for i in range(12)])  # images are numbered in the order of their names
  scores = [
    bleu([predictions[order[i]] for i in row], [references[order[i]] for i in row]).corpus
    for row in drawn
  ]
  np.testing.assert_allclose(found, np.quantile(scores, [0.025, 0.975], axis=0).T, rtol=1e-9)


def test_images_are_drawn_with_all_of_their_items():
  values = np.random.default_rng(0).normal(size=40)
  images = [f"{i:02d}" for i in range(40)]
  (one,) = bootstrap(values[:, None], images)
  (five,) = bootstrap(np.repeat(values, 5)[:, None], list(np.repeat(images, 5)))
  np.testing.assert_allclose(one, five)  # five copies of a question are no evidence of their own
  (apart,) = bootstrap(np.repeat(values, 5)[:, None], [str(i) for i in range(200)])
  assert apart.high - apart.low < 0.6 * (one.high - one.low)


def test_equal_seeds_give_equal_intervals_and_others_do_not():
  items = np.random.default_rng(0).normal(size=(30, 1))
  images = [str(i) for i in range(30)]
  assert bootstrap(items, images) == bootstrap(items, images) != bootstrap(items, images, seed=1)


def test_nothing_to_resample_is_an_error():
  with pytest.raises(ValueError, match="got 0 items"):
    bootstrap(np.zeros((0, 1)), [])
