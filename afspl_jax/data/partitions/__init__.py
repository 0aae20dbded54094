"""Ways to deal images out to clients: each is one file here, and nothing else is edited to add one.

A file `name.py` is a `Partitioner`. Files whose names begin with `_` are what several share.
Another package adds one by an entry point (config/registry.py).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, cast, runtime_checkable

import numpy as np

from afspl_jax.config.experiment import Data
from afspl_jax.config.registry import PARTITIONS
from afspl_jax.types import Example

Examples = Sequence[Example]
Deal = Callable[[Examples, np.random.Generator], dict[str, str]]  # gives each image its client


@runtime_checkable
class Partitioner(Protocol):
  """What a file here defines, besides its docstring.

  It may also define `capacities(names, data, rng)`, what each client can afford, which the manifest
  then tells; `rng` is as at the first draw.
  """

  REDRAWN: bool  # whether another draw may give the smallest client more

  def clients(self, splits: Mapping[str, Examples], data: Data) -> list[str]:
    """The clients' names, in order.

    Raises:
      UserError: the examples do not allow such a partition.
    """
    ...

  def draw(self, train: Examples, names: list[str], data: Data, rng: np.random.Generator) -> Deal:
    """What the splits have in common: which client gets what, as far as chance decides it.

    The deal then gives every image of a split to one of `names`, and depends on that split alone.
    """
    ...


def known() -> tuple[str, ...]:
  """Names of all partitioners, sorted."""
  return PARTITIONS.names()


def get(name: str) -> Partitioner:
  """The partitioner of that name.

  Raises:
    UserError: there is none.
  """
  return cast(Partitioner, PARTITIONS.load(name, (*known(), "manifest:FILE")))
