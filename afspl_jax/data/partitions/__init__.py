"""Partitions: ways to assign images to clients. To add one, add one module here.

A module `name.py` is a `Partitioner`. Modules whose names begin with `_` hold shared code.
Another package adds one by an entry point (config/registry.py).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, cast, runtime_checkable

import numpy as np

from afspl_jax.config.experiment import Data
from afspl_jax.config.registry import PARTITIONS
from afspl_jax.types import Example

Examples = Sequence[Example]
AssignSplit = Callable[
  [Examples, np.random.Generator], dict[str, str]
]  # gives each image its client


@runtime_checkable
class Partitioner(Protocol):
  """The contract of a module here.

  It may also define `capacities(names, data, rng)`, the capacity of each client, which is then in
  the manifest; `rng` has the state that it has at the first call of `assign`.
  """

  REDRAWN: bool  # whether another call of `assign` may give the smallest client more images

  def clients(self, splits: Mapping[str, Examples], data: Data) -> list[str]:
    """Names the clients, in order.

    Raises:
      UserError: the partition is not possible with these examples.
    """
    ...

  def assign(
    self, train: Examples, names: list[str], data: Data, rng: np.random.Generator
  ) -> AssignSplit:
    """Draws what the splits have in common, such as each client's share of each label.

    Args:
      train: the examples of train.
      names: from `clients`.
      data: settings of the partition.
      rng: for all draws.

    Returns:
      A function `(examples of a split, rng) -> client of each image`, which assigns every image of
      one split to one of `names`.
    """
    ...


def known_partitions() -> tuple[str, ...]:
  """Names of all partitioners, sorted."""
  return PARTITIONS.names()


def get_partitioner(name: str) -> Partitioner:
  """Returns the partitioner of a name.

  Raises:
    UserError: there is no such partitioner.
  """
  return cast(Partitioner, PARTITIONS.load(name, (*known_partitions(), "manifest:FILE")))
