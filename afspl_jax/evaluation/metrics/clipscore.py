"""CLIPScore of captions, from CLIP's features (Hessel et al. 2021, sec. 3; jmhessel/clipscore)."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64

PREFIX = "A photo depicts "  # before every caption, as in the paper
_WEIGHT = 2.5


@dataclasses.dataclass(frozen=True)
class ClipScores:
  """Of each item; the score of a set is the mean."""

  clipscore: Float64[np.ndarray, " items"]  # 2.5 cos(image, caption), not below 0
  refclipscore: Float64[np.ndarray, " items"]  # harmonic mean with the nearest reference's cosine


def clip_scores(
  captions: Float[np.ndarray, "items f"],
  images: Float[np.ndarray, "items f"],
  references: Float[np.ndarray, "references f"],
  groups: Sequence[Sequence[int]],
) -> ClipScores:
  """Scores captions by the joint features, of any length, of one CLIP.

  Args:
    captions: Features of the predictions behind PREFIX.
    images: Features of their images.
    references: Features of human captions behind PREFIX.
    groups: For each item, the rows of its references; at least one.
  """
  captions, images, references = (unit(x) for x in (captions, images, references))
  seen = _WEIGHT * np.maximum(np.sum(captions * images, axis=1), 0.0)
  near = [
    max(float((references[list(rows)] @ caption).max()), 0.0)
    for caption, rows in zip(captions, groups, strict=True)
  ]
  total = seen + near
  both = np.divide(2 * seen * near, total, out=np.zeros(len(seen)), where=total > 0)
  return ClipScores(seen, both)


def unit(features: Float[np.ndarray, "*rows f"]) -> Float64[np.ndarray, "*rows f"]:
  """Features of length 1."""
  features = np.asarray(features, np.float64)
  return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
