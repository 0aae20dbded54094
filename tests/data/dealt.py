"""Made-up examples to deal out, and what of a deal is looked at."""

from collections import Counter

import numpy as np

from afspl_jax.config.experiment import Data
from afspl_jax.data.partition import partition
from afspl_jax.types import Example

KINDS = ("natural", "iid", "dirichlet", "task", "quantity", "capacity", "pathological")
SITES = ("ash", "beech", "cherry")


def world(images: int, per_image=lambda i: 1 + i % 3, categories: int = 4) -> list[Example]:
  """Examples of `images` images over three sites; an image has several, not all side by side.

  Every other image is asked about, as in the shapes world.
  """
  out = [
    Example(
      f"{i}-{j}",
      f"image{i}",
      ("x",),
      question="what ?" * (i % 2),
      site=SITES[i % 3],
      labels=(str((i // 3) % categories),),
    )
    for i in range(images)
    for j in range(per_image(i))
  ]
  return out[::2] + out[1::2]


def one(_: int) -> int:
  return 1


def config(kind: str, **values) -> Data:
  defaults = {"num_clients": 3, "min_examples": 1}
  return Data(partition=kind, **(defaults | values))


def train_parts(examples, config, seed):
  return partition({"train": examples}, config, seed)["train"]


def owners(examples, clients) -> dict[str, set[str]]:
  """Clients that hold examples of each image."""
  out: dict[str, set[str]] = {}
  for name, indices in clients.items():
    for index in indices:
      out.setdefault(examples[index].image, set()).add(name)
  return out


def shares(examples, indices) -> np.ndarray:
  """Of each category among these examples."""
  names = sorted({example.labels for example in examples})
  counts = Counter(examples[i].labels for i in indices)
  return np.array([counts[name] for name in names]) / max(len(indices), 1)


def skew(examples, clients) -> float:
  """Mean total-variation distance of the clients' categories from all examples' categories."""
  everyone = shares(examples, range(len(examples)))
  return float(np.mean([abs(shares(examples, i) - everyone).sum() / 2 for i in clients.values()]))


def as_lists(clients) -> dict[str, list[int]]:
  return {name: indices.tolist() for name, indices in clients.items()}
