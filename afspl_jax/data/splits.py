"""The splits of a data set: their names, and which images belong to them."""

import functools
import hashlib
import itertools
from collections.abc import Collection

SPLITS = ("train", "validation", "test")
_SHARES = {"train": 7, "validation": 1, "test": 2}
_NAMES = {
  "train": "train",
  "training": "train",
  "val": "validation",
  "valid": "validation",
  "validation": "validation",
  "dev": "validation",
  "development": "validation",
  "test": "test",
  "testing": "test",
}


def named_split(name: str) -> str:
  """The split that a name means, in any case: "Train", "dev", "valid" and "val" are names too.

  Returns:
    One of `SPLITS`, or "" if the name is of none.
  """
  return _NAMES.get(name.strip().casefold(), "")


@functools.cache
def split_portions(among: tuple[str, ...] = SPLITS) -> dict[str, tuple[float, float]]:
  """Start and end of each split's portion of all images, in [0, 1]: 70, 10 and 20 %.

  Args:
    among: the splits that share all images, in the same proportion.
  """
  total = sum(_SHARES[split] for split in among)
  ends = list(itertools.accumulate(_SHARES[split] for split in among))
  starts = [0, *ends[:-1]]
  return {s: (a / total, b / total) for s, a, b in zip(among, starts, ends, strict=True)}


def hashed_split(image: str, among: tuple[str, ...] = SPLITS) -> str:
  """Assigns an image to a split by the hash of its name alone.

  Args:
    image: its name.
    among: the splits to choose from, with probabilities from `split_portions`.
  """
  share = int.from_bytes(hashlib.sha256(image.encode()).digest()[:8], "big") / 2**64
  return next(split for split, (_, end) in split_portions(among).items() if share < end or end == 1)


def splits_served(available: Collection[str]) -> dict[str, tuple[str, ...]]:
  """The splits that each part of a data set serves, if it lacks a part for some split.

  A single part serves all splits. Train also serves a missing validation split, and validation a
  missing test split.

  Args:
    available: the splits that have a part.
  """
  if len(available) == 1:
    return {split: SPLITS for split in available}
  out: dict[str, tuple[str, ...]] = {split: (split,) for split in SPLITS if split in available}
  for lacking, giver in (("validation", "train"), ("test", "validation")):
    if lacking not in out and giver in out:
      out[giver] += (lacking,)
  return out
