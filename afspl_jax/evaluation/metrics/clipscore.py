"""CLIPScore of captions, from CLIP's features (Hessel et al. 2021, sec. 3; jmhessel/clipscore)."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64

PREFIX = "A photo depicts "  # before every caption, as in the paper
_WEIGHT = 2.5


@dataclasses.dataclass(frozen=True)
class ClipScores:
  """Scores of each item; the score of a set is their mean."""

  clipscore: Float64[np.ndarray, " items"]  # 2.5 cos(image, caption), not below 0
  refclipscore: Float64[np.ndarray, " items"]  # harmonic mean with the nearest reference's cosine


def clip_scores(
  captions: Float[np.ndarray, "items f"],
  images: Float[np.ndarray, "items f"],
  references: Float[np.ndarray, "references f"],
  groups: Sequence[Sequence[int]],
) -> ClipScores:
  """Scores captions by the joint features of one CLIP; they need not have length 1.

  Args:
    captions: features of PREFIX + prediction.
    images: features of their images.
    references: features of PREFIX + human caption.
    groups: the rows of each item's references, at least one.
  """
  captions, images, references = (unit_length(x) for x in (captions, images, references))
  seen = _WEIGHT * np.maximum(np.sum(captions * images, axis=1), 0.0)
  near = [
    max(float((references[list(rows)] @ caption).max()), 0.0)
    for caption, rows in zip(captions, groups, strict=True)
  ]
  total = seen + near
  both = np.divide(2 * seen * near, total, out=np.zeros(len(seen)), where=total > 0)
  return ClipScores(seen, both)


def unit_length(features: Float[np.ndarray, "*rows f"]) -> Float64[np.ndarray, "*rows f"]:
  """The features, scaled to length 1."""
  features = np.asarray(features, np.float64)
  return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
