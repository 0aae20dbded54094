"""The optimizer of local training: Adam, a learning rate for each group of leaves, a schedule."""

from collections.abc import Collection
from typing import Any

import jax
import optax

from afspl_jax.config.experiment import Optim

# The group of a leaf is the first with a matching prefix. Prompts and places are vectors in the
# language model's embedding space and move far, so they have learning rates of their own.
GROUPS = {
  "local": ("local/prompt",),
  "prompts": ("pool/prompts", "visual_prompt", "textual_prompt", "mapper/place"),
  "keys": ("pool/",),
  "fusion": ("fusion/", "local/contrast"),
  "mapper": ("mapper/",),
}
_FIXED = "fixed"


def make_optimizer(config: Optim, fixed: Collection[str] = ()) -> optax.GradientTransformation:
  """Makes Adam with gradient clipping and a learning rate for each of GROUPS.

  Args:
    config: of the optimisation.
    fixed: names of leaves that do not move, and have no state.
  """
  learning_rates = {
    "local": config.local_lr,
    "prompts": config.prompt_lr,
    "keys": config.key_lr,
    "fusion": config.fusion_lr,
    "mapper": config.mapper_lr,
  }

  def label(path: tuple[Any, ...], _: Any) -> str:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if name in fixed:
      return _FIXED
    return next(group for group, prefixes in GROUPS.items() if name.startswith(prefixes))

  groups = {
    name: optax.adamw(learning_rate, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay)
    for name, learning_rate in learning_rates.items()
  } | {_FIXED: optax.set_to_zero()}
  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    optax.partition(groups, lambda params: jax.tree_util.tree_map_with_path(label, params)),
  )


def make_schedule(config: Optim, rounds: int) -> optax.Schedule:
  """The factor on every learning rate, by local steps since round 1."""
  steps, warmup = max(rounds, 1) * config.local_steps, warmup_steps(config, rounds)
  if config.schedule == "constant":
    return optax.schedules.linear_schedule(1 / (warmup + 1), 1.0, warmup)
  return optax.schedules.warmup_cosine_decay_schedule(
    1 / (warmup + 1), 1.0, warmup, steps, config.final_lr
  )


def warmup_steps(config: Optim, rounds: int) -> int:
  """Local steps until the learning rates are at their peak."""
  wanted = round(config.warmup_rounds * config.local_steps)
  return min(wanted, max(rounds, 1) * config.local_steps - 1)
