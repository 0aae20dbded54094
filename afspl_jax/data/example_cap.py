"""At most so many training examples of each client: `data.max_examples`."""

import hashlib

import numpy as np

from afspl_jax.config.experiment import Data
from afspl_jax.config.setting import require
from afspl_jax.data.manifest import Clients
from afspl_jax.data.partitions import Examples


def check_cap(config: Data) -> None:
  """Rejects a cap below the fewest examples that a client may have.

  Raises:
    SettingError: naming the setting.
  """
  most, least = config.max_examples, config.min_examples
  fits = most == 0 or most >= least
  require("data.max_examples", most, fits, f"0, or at least data.min_examples, {least}")


def capped(train: Clients, examples: Examples, config: Data, seed: int) -> Clients:
  """The training examples of each client, at most `config.max_examples` of them.

  The seed orders all examples by a hash of their ids, and a client keeps its first ones. So a
  smaller cap gives a part of what a larger one gives, and neither the order of the source nor the
  examples of other clients matter.

  Args:
    train: the indices of each client's examples.
    examples: of train.
    config: 0 keeps all examples.
    seed: equal seeds give equal choices.

  Returns:
    The indices that are kept, in their order.

  Raises:
    SettingError: the cap is below `config.min_examples`.
  """
  check_cap(config)
  most = config.max_examples
  if not most:
    return train

  def place(row: int) -> bytes:
    return hashlib.sha256(f"{seed}:{examples[row].id}".encode()).digest()

  def kept(rows: list[int]) -> list[int]:
    return rows if len(rows) <= most else sorted(sorted(rows, key=place)[:most])

  return {name: np.array(kept(rows.tolist()), int) for name, rows in train.items()}
