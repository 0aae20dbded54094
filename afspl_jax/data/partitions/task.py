"""Captions for the first half of the clients, questions for the others."""

from collections.abc import Mapping

import numpy as np

from afspl_jax.config.experiment import Data
from afspl_jax.data.partitions import Deal, Examples
from afspl_jax.data.partitions._deals import evenly, numbered
from afspl_jax.errors import UserError

REDRAWN = False


def clients(splits: Mapping[str, Examples], data: Data) -> list[str]:
  """Numbered ones.

  Raises:
    UserError: fewer than two, or train lacks captions or questions.
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
  return numbered(splits, data)


def draw(train: Examples, names: list[str], data: Data, rng: np.random.Generator) -> Deal:
  """Each split is dealt out for itself; an image with both goes to any client."""

  def deal(examples: Examples, rng: np.random.Generator) -> dict[str, str]:
    captions = [example.image for example in examples if not example.question]
    questions = [example.image for example in examples if example.question]
    both = set(captions) & set(questions)
    half = (len(names) + 1) // 2
    return (
      evenly([image for image in captions if image not in both], names[:half], rng)
      | evenly([image for image in questions if image not in both], names[half:], rng)
      | evenly([image for image in captions if image in both], names, rng)
    )

  return deal
