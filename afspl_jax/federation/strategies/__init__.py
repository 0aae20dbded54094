"""Federated methods: each is one file here with both of its halves.

A file `name.py` defines `create`, a frozen dataclass that is a `Strategy`. Its fields are the
method's options, each an int or a float with a default; a field `num_sites` is not an option but
the number of sites in the federation. To add a method, add a file and edit nothing else. Files
whose names begin with `_` have what several methods share; `ServerSide`, `in_order`,
`weighted_mean` and `where_sent` are imported from here. Another package adds a method by an
entry point (config/registry.py).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, get_type_hints, runtime_checkable

from jaxtyping import Array, Float

from afspl_jax.config.registry import STRATEGIES
from afspl_jax.errors import UserError
from afspl_jax.federation.contracts import Update
from afspl_jax.federation.protocol.uplink import where_sent
from afspl_jax.federation.strategies._base import ServerSide
from afspl_jax.federation.strategies._mean import in_order, weighted_mean
from afspl_jax.models.prompter.local import split_local
from afspl_jax.types import Params

__all__ = [
  "Controlled",
  "ServerSide",
  "Strategy",
  "get_strategy",
  "in_order",
  "known_strategies",
  "of_losses",
  "of_mean",
  "shared_penalty",
  "weighted_mean",
  "where_sent",
]

_KINDS = {int: "a whole number", float: "a number"}
_NUM_SITES = "num_sites"


@runtime_checkable
class Strategy(Protocol):
  """The two halves of a federated method."""

  def client_penalty(self, params: Params, global_params: Params) -> Float[Array, ""]:
    """Client half, pure and traced: added to the local loss in every step.

    Both trees are of the shared leaves: the local ones have no global value to be near.
    """
    ...

  def init(self, params: Params) -> Any:
    """Server state before the first round: a pytree of arrays, kept in checkpoints.

    `aggregate` changes neither its structure nor the arrays' shapes and dtypes.
    """
    ...

  def aggregate(self, params: Params, state: Any, updates: Sequence[Update]) -> tuple[Params, Any]:
    """Server half: new params and state from the round's updates, at least one.

    A row that no update's mask has keeps its value, in the params and in the state, and the result
    must not depend on the order of the updates: both to the last bit.

    Raises:
      ValueError: the method needs more of the updates than these give; the message says what.
    """
    ...


@runtime_checkable
class Controlled(Strategy, Protocol):
  """A strategy with which the sites correct their local gradients by controls.

  Every site keeps a control. In every local step it adds the server's control minus its own to the
  gradient. Its new control is the mean of the uncorrected gradients; it sends the difference from
  the old one.
  """

  def control(self, params: Params, state: Any) -> Params:
    """The server's control, sent with the params: NumPy leaves of the same shapes and dtypes."""
    ...


def shared_penalty(strategy: Strategy, local: Sequence[str]) -> Callable[..., Float[Array, ""]]:
  """The strategy's addition to the local loss, as a function of all leaves and those it began from.

  Args:
    strategy: gives the addition.
    local: patterns of the local leaves, which it does not see.
  """

  def penalty(params: Params, global_params: Params) -> Float[Array, ""]:
    shared, start = (split_local(each, local)[0] for each in (params, global_params))
    return strategy.client_penalty(shared, start)

  return penalty


def of_mean(strategy: Strategy) -> bool:
  """Whether it uses only the mean of the updates, so that one update may stand for all."""
  return getattr(strategy, "of_mean", False)


def of_losses(strategy: Strategy) -> bool:
  """Whether it needs losses that sites send."""
  return getattr(strategy, "of_losses", False)


def known_strategies() -> tuple[str, ...]:
  """Names of all strategies, sorted."""
  return STRATEGIES.names()


def get_strategy(spec: str, num_sites: int = 0) -> Strategy:
  """The strategy that an experiment names.

  Args:
    spec: the experiment's `fed.strategy`: a name, or a name with options, as in
      `fedadam:server_lr=0.03,tau=0.001`.
    num_sites: sites in the federation, for a strategy that depends on it.

  Raises:
    UserError: no such strategy or option, or a value that the option cannot have.
  """
  name, colon, options = spec.partition(":")
  create = STRATEGIES.load(name).create
  chosen = _parse(name, create, options.split(",") if colon else [])
  return create(**chosen, **({_NUM_SITES: num_sites} if hasattr(create, _NUM_SITES) else {}))


def _parse(name: str, create: type, items: list[str]) -> dict[str, int | float]:
  """The options in `items`, each `name=value`, by the types of the dataclass's fields."""
  fields = dataclasses.fields(create)
  defaults = {field.name: field.default for field in fields if field.name != _NUM_SITES}
  types = get_type_hints(create)
  options: dict[str, int | float] = {}
  for item in items:
    option, equals, value = item.partition("=")
    if option not in defaults or option in options or not equals:
      listed = ", ".join(f"{field}={default}" for field, default in defaults.items())
      expected = f"its options ({listed}), each once, as name=value" if listed else "no options"
      raise UserError(f"fed.strategy: {name}: expected {expected}; got {item!r}")
    try:
      options[option] = types[option](value)
    except ValueError:
      kind = _KINDS[types[option]]
      message = f"fed.strategy: {name}: {option}: expected {kind}; got {value!r}"
      raise UserError(message) from None
  return options
