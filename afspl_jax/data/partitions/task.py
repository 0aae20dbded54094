"""The first half of the clients has captions, the other half has questions."""

from collections.abc import Mapping

import numpy as np

from afspl_jax.config.experiment import Data
from afspl_jax.data.partitions import AssignSplit, Examples
from afspl_jax.data.partitions._sharing import assign_evenly, numbered_clients
from afspl_jax.errors import UserError

REDRAWN = False


def clients(splits: Mapping[str, Examples], data: Data) -> list[str]:
  """Numbers the clients.

  Raises:
    UserError: there are fewer than two, or train lacks captions or questions.
  """
  if data.num_clients < 2:
    raise UserError(
      "data.num_clients: expected at least 2 for the task partition, one with captions and one"
      f" with questions; got {data.num_clients}"
    )
  for side, questions in (("captions", False), ("questions", True)):
    if not any(bool(example.question) == questions for example in splits["train"]):
      raise UserError(
        "data.partition: expected images with captions and images with questions for the task"
        f" partition; train has none with {side}. Use another partition or source."
      )
  return numbered_clients(splits, data)


def assign(train: Examples, names: list[str], data: Data, rng: np.random.Generator) -> AssignSplit:
  """Assigns each split independently; an image with both may go to any client."""

  def assign_split(examples: Examples, rng: np.random.Generator) -> dict[str, str]:
    captions = [example.image for example in examples if not example.question]
    questions = [example.image for example in examples if example.question]
    both = set(captions) & set(questions)
    half = (len(names) + 1) // 2
    return (
      assign_evenly([image for image in captions if image not in both], names[:half], rng)
      | assign_evenly([image for image in questions if image not in both], names[half:], rng)
      | assign_evenly([image for image in captions if image in both], names, rng)
    )

  return assign_split
