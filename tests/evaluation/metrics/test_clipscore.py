"""By hand here; with a CLIP of transformers' in tests/runs/trained/test_rescore.py."""

import numpy as np

from afspl_jax.evaluation.metrics.clipscore import clip_scores


def test_clipscore_is_scaled_cosine_and_refclipscore_its_harmonic_mean_with_the_nearest():
  captions = np.array([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
  images = np.array([[0.6, 0.8], [0.0, 5.0], [1.0, 0.0]])
  references = np.array([[0.0, 1.0], [3.0, 4.0], [0.0, 1.0], [-2.0, 0.0]])
  groups = [[0, 1], [2], [3]]
  found = clip_scores(captions, images, references, groups)
  np.testing.assert_allclose(found.clipscore, [2.5 * 0.6, 2.5, 0.0])
  harmonic = [2 * 1.5 * 0.6 / 2.1, 2 * 2.5 / 3.5, 0.0]
  np.testing.assert_allclose(found.refclipscore, harmonic)
