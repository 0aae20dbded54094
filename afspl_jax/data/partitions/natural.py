"""Every site is a client."""

from collections.abc import Mapping

import numpy as np

from afspl_jax.config.experiment import Data
from afspl_jax.data.partitions import Deal, Examples
from afspl_jax.errors import UserError

REDRAWN = False


def clients(splits: Mapping[str, Examples], data: Data) -> list[str]:
  """The sites of train.

  Raises:
    UserError: they are not `data.num_clients`, or another split has others.
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
        f"data.partition: expected sites of train alone for the natural partition; {split} also"
        f" has {', '.join(unknown)}. Use another partition, or move these examples into train."
      )
  return names


def draw(train: Examples, names: list[str], data: Data, rng: np.random.Generator) -> Deal:
  """Leaves nothing to chance."""
  return lambda examples, _: {example.image: example.site for example in examples}
