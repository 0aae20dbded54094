"""Federated methods: each is one file here that holds both of its halves.

A file `name.py` defines `create`, a callable that returns a `Strategy`; nothing else is edited to
add one.
"""

import importlib
import pkgutil
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float

from afspl_jax.config import choice
from afspl_jax.types import Params


class Reply(NamedTuple):
  """A site's valid reply in one round."""

  site: str
  params: Params  # NumPy leaves, finite, of the global params' shapes and dtypes
  masks: Params  # bool, broadcastable to the leaves: which rows count as the site's own; its params
  # elsewhere are the global ones
  num_examples: int  # positive
  metrics: dict[str, float]  # finite


@runtime_checkable
class Strategy(Protocol):
  """The two halves of a federated method."""

  def client_penalty(self, params: Params, global_params: Params) -> Float[Array, ""]:
    """Client half, pure and traced: added to the local loss in every step."""
    ...

  def init(self, params: Params) -> Any:
    """Server state before the first round: a pytree of arrays, kept in checkpoints."""
    ...

  def aggregate(self, params: Params, state: Any, replies: Sequence[Reply]) -> tuple[Params, Any]:
    """Server half: new params and state from the round's replies, at least one.

    A row that no reply's mask has keeps its value, and the result must not depend on the order of
    the replies: both to the last bit.
    """
    ...


def get(name: str, **options: Any) -> Strategy:
  """The strategy in the file of that name.

  Args:
    name: the experiment's `fed.strategy`.
    **options: passed on to the file's `create`.

  Raises:
    UserError: no such strategy; names those there are.
  """
  known = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))
  return importlib.import_module(f"{__name__}.{choice('fed.strategy', name, known)}").create(
    **options
  )
