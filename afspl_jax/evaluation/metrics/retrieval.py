"""Retrieval recall by features: from captions to their images, and from images to captions."""

import numpy as np
from jaxtyping import Float, Float64, Int

from afspl_jax.evaluation.metrics.clipscore import unit_length

_KS = (1, 5, 10)
_BLOCK = 1024  # captions that are compared with all images at a time


def recall_at_k(
  images: Float[np.ndarray, "images f"],
  captions: Float[np.ndarray, "captions f"],
  image_of: Int[np.ndarray, " captions"],
) -> dict[str, float]:
  """R@1, R@5 and R@10 in both directions by cosine (Karpathy & Fei-Fei 2015, sec. 4.2).

  A caption is a hit if its image is among the K nearest images. An image is a hit if one of its
  captions is among the K nearest captions. Among equally near candidates, wrong ones come first.

  Args:
    images: features of the distinct images.
    captions: features of all their captions, one or more for each image.
    image_of: the row of each caption's image; every image has a caption.

  Returns:
    `text_to_image_r1`, ..., `image_to_text_r10`: fractions of captions, and of images.
  """
  images, captions = unit_length(images), unit_length(captions)
  best = np.full(len(images), -np.inf)  # similarity of an image's nearest caption
  image_rank = np.empty(len(captions), int)
  for own, block, similar in _blocks(images, captions, image_of):
    mine = similar[own, np.arange(len(own))]
    image_rank[block] = (similar >= mine).sum(axis=0) - 1
    np.maximum.at(best, own, mine)
  caption_rank = np.zeros(len(images), int)
  for own, _, similar in _blocks(images, captions, image_of):
    similar[own, np.arange(len(own))] = -np.inf  # an image's own captions are no competitors
    caption_rank += (similar >= best[:, None]).sum(axis=1)
  ranks = {"text_to_image": image_rank, "image_to_text": caption_rank}
  return {f"{way}_r{k}": float(np.mean(rank < k)) for way, rank in ranks.items() for k in _KS}


def _blocks(
  images: Float64[np.ndarray, "images f"],
  captions: Float64[np.ndarray, "captions f"],
  image_of: Int[np.ndarray, " captions"],
):
  """Yields the similarities of all images with one block of captions after the other."""
  for start in range(0, len(captions), _BLOCK):
    block = slice(start, start + _BLOCK)
    yield image_of[block], block, images @ captions[block].T
