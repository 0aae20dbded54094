"""What a client keeps to itself: its own prompt, and the projection of its contrastive loss."""

from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from afspl_jax.types import Params

LOCAL = "local"  # the prompter's leaves under this name never leave a client


class Local(nnx.Module):
  """The leaves of a prompter that stay with their client and are kept between rounds.

  Args:
    prompt: where the client's own prompt starts; None: it has none.
    width: d, of T5's encoder states.
    feature_width: f, of CLIP's joint space.
    contrast: whether there is a contrastive loss, whose projection is of no use elsewhere.
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


def split(params: Params, share: str = "all") -> tuple[dict[str, Any], dict[str, Any]]:
  """A prompter's leaves as (what travels, what stays); `share` is the config's `fed.share`."""
  if share == "none":
    return {}, dict(params)
  shared = {name: leaves for name, leaves in params.items() if name != LOCAL}
  return shared, {name: leaves for name, leaves in params.items() if name == LOCAL}


def join(shared: Params, own: Params) -> Params:
  """The inverse of `split`."""
  return {**shared, **own}
