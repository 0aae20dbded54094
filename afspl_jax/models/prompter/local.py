"""The local leaves of a prompter: the local prompt, and the projection of the contrastive loss."""

from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from afspl_jax.types import Params

LOCAL = "local"  # leaves under this name never leave a client


class Local(nnx.Module):
  """The leaves of a prompter that stay at their client and are kept between rounds.

  Args:
    prompt: initial local prompt; None for a prompter without one.
    width: d, of the language model's states.
    feature_width: f, of the joint space of images and texts.
    contrast: whether to add the projection, which only the contrastive loss uses.
  """

  def __init__(
    self,
    prompt: Float[Array, "p d"] | None,
    *,
    width: int,
    feature_width: int,
    contrast: bool,
    rngs: nnx.Rngs,
  ):
    if prompt is not None:
      self.prompt = nnx.Param(prompt)
    if contrast:
      self.contrast = nnx.Linear(width, feature_width, rngs=rngs)


def split_local(params: Params, share: str = "all") -> tuple[dict[str, Any], dict[str, Any]]:
  """Splits a prompter's leaves into shared and local ones.

  Args:
    params: all leaves.
    share: the config's `fed.share`; "none" makes all leaves local.

  Returns:
    The shared leaves and the local leaves.
  """
  if share == "none":
    return {}, dict(params)
  shared = {name: leaves for name, leaves in params.items() if name != LOCAL}
  return shared, {name: leaves for name, leaves in params.items() if name == LOCAL}


def join_local(shared: Params, local: Params) -> Params:
  """The inverse of `split_local`."""
  return {**shared, **local}
