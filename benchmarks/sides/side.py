"""What is asked of a side: the same work, in its own way, in a process of its own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, Int

from benchmarks.case import Case, Rows

Leaves = Mapping[str, Any]  # nested dicts of NumPy arrays


class Trained(NamedTuple):
  """What local training gave."""

  losses: Float[np.ndarray, "k c"]  # cross-entropy before each step, nats a token
  params: Leaves  # of the clients, each leaf with a leading axis `c`


class Side(Protocol):
  """Built as `Side(case, folders, params)`; params are the untrained prompter's leaves.

  Args of the constructor:
    case: models and settings.
    folders: checkpoint folders of "clip" and "t5".
    params: all of the prompter's leaves, by the names of `models.prompter.Prompter`.
  """

  def __init__(self, case: Case, folders: Mapping[str, Path], params: Leaves): ...

  def encode(self) -> None:
    """Encodes the case's images, and keeps the features if this side does such a thing."""
    ...

  def train(self, rows: Rows) -> Trained:
    """Local training of every client, each from the same params with a fresh optimizer."""
    ...

  def generate(self, rows: Rows, beams: int, tokens: int) -> Int[np.ndarray, "n t"]:
    """Exactly `tokens` new tokens for each row of the first step of the first client."""
    ...
