"""The local leaves of a prompter: which leaves never leave a client.

Always those under `local/`: the local prompt, and the projection of the contrastive loss. With the
config's `fed.local_leaves` also others. Arivazhagan et al. 2019, "Federated Learning with
Personalization Layers" (FedPer), sec. 3, Algorithms 1 and 2: the server averages the base layers;
every client keeps its personalization layers, which begin from values of its own, and are trained
together with the base layers.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from afspl_jax.config.experiment import Fed
from afspl_jax.config.setting import require
from afspl_jax.storage.pytrees import named_leaves
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


def local_patterns(config: Fed) -> tuple[str, ...]:
  """The patterns of names, as in `fnmatch`, of the leaves that stay at each client."""
  if config.share == "none":
    return ("*",)
  return (f"{LOCAL}/*", *filter(None, config.local_leaves.split(",")))


def is_local(name: str, patterns: Sequence[str]) -> bool:
  """Whether a leaf of this name stays at each client."""
  return any(fnmatchcase(name, pattern) for pattern in patterns)


def split_local(
  params: Params, patterns: Sequence[str] = (f"{LOCAL}/*",)
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Splits a prompter's leaves into shared and local ones.

  Args:
    params: all leaves, as nested dicts.
    patterns: of the local leaves, from `local_patterns`.

  Returns:
    The shared leaves and the local leaves; neither has empty dicts.
  """
  return _split(params, "", patterns)


def split_like(params: Params, shared: Params) -> tuple[dict[str, Any], dict[str, Any]]:
  """Splits leaves into those that another tree has too, and the others."""
  inner: tuple[dict[str, Any], dict[str, Any]] = {}, {}
  for name, value in params.items():
    if not isinstance(value, Mapping):
      inner[name not in shared][name] = value
    else:
      for side, part in zip(inner, split_like(value, shared.get(name, {})), strict=True):
        if part:
          side[name] = part
  return inner


def join_local(shared: Params, local: Params) -> Params:
  """The inverse of `split_local`; of a leaf in both trees it takes the local one."""
  joined = dict(shared)
  for name, value in local.items():
    both = isinstance(value, Mapping) and name in joined
    joined[name] = join_local(joined[name], value) if both else value
  return joined


def check_patterns(params: Params, config: Fed) -> None:
  """Requires that every pattern of `fed.local_leaves` matches a leaf, and that some are shared.

  Args:
    params: all leaves.
    config: the federation's settings.

  Raises:
    SettingError: naming the first pattern without a leaf.
  """
  names = named_leaves(params)
  for pattern in filter(None, config.local_leaves.split(",")):
    found = any(fnmatchcase(name, pattern) for name in names)
    listed = ", ".join(name for name in names if not name.startswith(f"{LOCAL}/"))
    require("fed.local_leaves", pattern, found, f"patterns of leaves, of: {listed}")
  some = bool(split_local(params, local_patterns(config))[0]) or config.share == "none"
  require("fed.local_leaves", config.local_leaves, some, "some shared leaves, or fed.share=none")


def _split(
  params: Params, prefix: str, patterns: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
  sides: tuple[dict[str, Any], dict[str, Any]] = {}, {}
  for name, value in params.items():
    if not isinstance(value, Mapping):
      sides[is_local(f"{prefix}{name}", patterns)][name] = value
    else:
      for side, part in zip(sides, _split(value, f"{prefix}{name}/", patterns), strict=True):
        if part:
          side[name] = part
  return sides
