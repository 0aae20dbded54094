"""The interface of a side: one implementation of the measured work, in its own process."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, Int

from benchmarks.case import Case, Rows

Leaves = Mapping[str, Any]  # nested dicts of NumPy arrays


class Trained(NamedTuple):
  """The result of local training."""

  losses: Float[np.ndarray, "k c"]  # cross-entropy before each step, in nats per token
  params: Leaves  # each leaf has a leading axis `c` of clients


class Side(Protocol):
  """Built as `Side(case, folders, params)`; params are the untrained prompter's leaves.

  Args of the constructor:
    case: models and settings.
    folders: checkpoint folders of "clip" and "t5".
    params: all of the prompter's leaves, by the names of `models.prompter.Prompter`.
  """

  def __init__(self, case: Case, folders: Mapping[str, Path], params: Leaves): ...

  def encode(self) -> None:
    """Encodes the case's images, if this side stores features."""
    ...

  def train(self, rows: Rows) -> Trained:
    """Trains every client, from the same params and with a new optimizer."""
    ...

  def generate(self, rows: Rows, beams: int, tokens: int) -> Int[np.ndarray, "n t"]:
    """Generates exactly `tokens` tokens for each row of the first client's first step."""
    ...
