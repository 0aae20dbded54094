"""Retrieval by features: does a caption find its image, and an image a caption of its own?"""

import numpy as np
from jaxtyping import Float, Float64, Int

from afspl_jax.evaluation.metrics.clipscore import unit

_KS = (1, 5, 10)
_BLOCK = 1024  # captions compared with all images at a time


def recall_at_k(
  images: Float[np.ndarray, "images f"],
  captions: Float[np.ndarray, "captions f"],
  image_of: Int[np.ndarray, " captions"],
) -> dict[str, float]:
  """R@1, R@5 and R@10 both ways by cosine, as Karpathy & Fei-Fei 2015 (sec. 4.2) count them.

  A caption is a hit if its image is among the K nearest; an image is one if any of its captions is
  among the K nearest of all captions. Of candidates equally near, the wrong ones come first.

  Args:
    images: Features of the images, each once.
    captions: Features of all captions of them, several an image or one.
    image_of: The row of each caption's image; every image has a caption.

  Returns:
    `text_to_image_r1`, ..., `image_to_text_r10`: shares of captions, and of images.
  """
  images, captions = unit(images), unit(captions)
  best = np.full(len(images), -np.inf)  # similarity of an image's nearest own caption
  image_rank = np.empty(len(captions), int)
  for own, block, similar in _blocks(images, captions, image_of):
    mine = similar[own, np.arange(len(own))]
    image_rank[block] = (similar >= mine).sum(axis=0) - 1
    np.maximum.at(best, own, mine)
  caption_rank = np.zeros(len(images), int)
  for own, _, similar in _blocks(images, captions, image_of):
    similar[own, np.arange(len(own))] = -np.inf  # an image's own captions are no rivals
    caption_rank += (similar >= best[:, None]).sum(axis=1)
  ranks = {"text_to_image": image_rank, "image_to_text": caption_rank}
  return {f"{way}_r{k}": float(np.mean(rank < k)) for way, rank in ranks.items() for k in _KS}


def _blocks(
  images: Float64[np.ndarray, "images f"],
  captions: Float64[np.ndarray, "captions f"],
  image_of: Int[np.ndarray, " captions"],
):
  """Similarities of all images with a block of captions at a time; the same every time."""
  for start in range(0, len(captions), _BLOCK):
    block = slice(start, start + _BLOCK)
    yield image_of[block], block, images @ captions[block].T
