"""Every site of the source is a client."""

from collections.abc import Mapping

import numpy as np

from afspl_jax.config.experiment import Data
from afspl_jax.data.partitions import AssignSplit, Examples
from afspl_jax.errors import UserError

REDRAWN = False


def clients(splits: Mapping[str, Examples], data: Data) -> list[str]:
  """The sites of train.

  Raises:
    UserError: their number is not `data.num_clients`, or another split has other sites.
  """
  sites = {split: {example.site for example in examples} for split, examples in splits.items()}
  names = sorted(sites["train"])
  if len(names) != data.num_clients:
    raise UserError(
      f"data.num_clients: expected {len(names)}, the sites of this source, for the natural"
      f" partition; got {data.num_clients}"
    )
  for split, found in sites.items():
    if unknown := sorted(found - set(names)):
      raise UserError(
        f"data.partition: expected only sites of train for the natural partition; {split} also"
        f" has {', '.join(unknown)}. Use another partition, or move these examples into train."
      )
  return names


def assign(train: Examples, names: list[str], data: Data, rng: np.random.Generator) -> AssignSplit:
  """Assigns every image to its site; nothing is random."""
  return lambda examples, _: {example.image: example.site for example in examples}
