"""The settings of the data: where examples come from, and how clients share them."""

from dataclasses import dataclass

from afspl_jax.config.registry import PARTITIONS, SOURCES
from afspl_jax.config.setting import setting


@dataclass
class Data:
  """Where the examples come from and how clients share them."""

  source: str = setting(
    "shapes", "data set; tfds:NAME is one of tensorflow-datasets", plugins=SOURCES, agreed="split"
  )
  dir: str = setting("", "folder of the data set; empty: the default of tensorflow-datasets")
  fields: str = setting(
    "", 'columns of a tfds:NAME, as "image=image,captions=caption/text"', agreed="split"
  )
  max_bad: int = setting(0, "malformed records to leave out before it is an error", "records", ge=0)
  partition: str = setting(
    "natural",
    "how clients share the examples; manifest:FILE reads a partition.json",
    plugins=PARTITIONS,
    agreed="split",
  )
  dirichlet_alpha: float = setting(
    0.5, "dirichlet, quantity: the smaller, the more clients differ", gt=0, agreed="split"
  )
  categories: int = setting(
    2, "pathological: different labels at a client", "labels", ge=1, agreed="split"
  )
  capacity_ratio: float = setting(
    10.0, "capacity: the strongest client's over the weakest's", ge=1, agreed="split"
  )
  num_clients: int = setting(10, "clients in the federation", "clients", ge=1, agreed="split")
  min_examples: int = setting(
    8, "fewest examples of a client; a client with fewer is an error", "examples", agreed="split"
  )
  max_examples: int = setting(
    0,
    "most training examples of a client; a lower cap keeps a part of them; 0: all",
    "examples",
    ge=0,
    agreed="split",
  )
  instruction_length: int = setting(
    16, "length of the instruction; padded or cut", "tokens", ge=1, agreed="always"
  )
  target_length: int = setting(
    44, "length of the caption or answer; padded or cut", "tokens", ge=1, agreed="always"
  )
  caption_instruction: str = setting(
    "describe the picture .", "instruction for an image without a question", agreed="always"
  )
