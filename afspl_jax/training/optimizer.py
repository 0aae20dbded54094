"""The optimizer of local training: Adam, a learning rate for each group of leaves, a schedule."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from afspl_jax.config.experiment import Optim
from afspl_jax.models.prompter.local import is_local

# The group of a leaf is the first with a matching prefix. Prompts and places are vectors in the
# language model's embedding space and move far, so they have learning rates of their own.
GROUPS = {
  "local": ("local/prompt",),
  "prompts": ("pool/prompts", "sites/prompts", "visual_prompt", "textual_prompt", "mapper/place"),
  "keys": ("pool/",),
  "fusion": ("fusion/", "local/contrast"),
  "mapper": ("mapper/",),
}
_FIXED = "fixed"


class Alternation(NamedTuple):
  """The state of an optimizer that trains the local leaves before the shared ones."""

  local: Any
  shared: Any
  steps: Int[Array, ""]  # steps that were taken in this round


def make_optimizer(
  config: Optim, fixed: Collection[str] = (), local: Sequence[str] = ()
) -> optax.GradientTransformation:
  """Makes Adam with gradient clipping and a learning rate for each of GROUPS.

  With `config.local_only` the first steps of a round move the local leaves alone, and the others
  the shared leaves alone, each by an Adam of its own. Collins et al. 2021, "Exploiting Shared
  Representations for Personalized Federated Learning" (FedRep), Algorithm 1: a client first takes
  many steps of its head with the representation fixed, and then steps of the representation with
  the head fixed. Pillutla et al. 2022, "Federated Learning with Partial Model Personalization",
  Algorithm 2, calls it FedAlt, and FedSim the training of both at once.

  Args:
    config: of the optimisation.
    fixed: names of leaves that do not move, and have no state.
    local: patterns of the local leaves, for `config.local_only`.
  """
  if not config.local_only:
    return _adam(config, lambda name: name in fixed)
  own = _adam(config, lambda name: name in fixed or not is_local(name, local), alone=True)
  rest = _adam(config, lambda name: name in fixed or is_local(name, local), alone=True)

  def init(params: Any) -> Alternation:
    return Alternation(own.init(params), rest.init(params), jnp.zeros((), jnp.int32))

  def update(grads: Any, state: Alternation, params: Any = None) -> tuple[Any, Alternation]:
    first, own_state = own.update(grads, state.local, params)
    second, rest_state = rest.update(grads, state.shared, params)
    early = state.steps < config.local_only
    pick = lambda new, old: jax.tree.map(lambda a, b: jnp.where(early, a, b), new, old)  # noqa: E731
    kept = pick(own_state, state.local), pick(state.shared, rest_state)
    return pick(first, second), Alternation(*kept, state.steps + 1)

  return optax.GradientTransformation(init, update)


def _adam(
  config: Optim, still: Callable[[str], bool], alone: bool = False
) -> optax.GradientTransformation:
  """Adam of the leaves that are not still; `alone`: gradients of the still ones do not count."""
  learning_rates = {
    "local": config.local_lr,
    "prompts": config.prompt_lr,
    "keys": config.key_lr,
    "fusion": config.fusion_lr,
    "mapper": config.mapper_lr,
  }

  def label(path: tuple[Any, ...], _: Any) -> str:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if still(name):
      return _FIXED
    return next(group for group, prefixes in GROUPS.items() if name.startswith(prefixes))

  def labels(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(label, params)

  def is_still(params: Any) -> Any:
    return jax.tree.map(lambda name: name == _FIXED, labels(params))

  groups = {
    name: optax.adamw(learning_rate, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay)
    for name, learning_rate in learning_rates.items()
  } | {_FIXED: optax.set_to_zero()}
  return optax.chain(
    *([optax.masked(optax.set_to_zero(), is_still)] if alone else []),
    optax.clip_by_global_norm(config.clip_norm),
    optax.partition(groups, labels),
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
