"""Data sources by name.

Each is one module here with `open_splits(splits, data, bad_records)`, which gives a `Source` for
each split. To add one, nothing else is edited. Another package adds one by an entry point
(config/registry.py).
"""

from collections.abc import Sequence

from afspl_jax.config.experiment import Data
from afspl_jax.config.registry import SOURCES
from afspl_jax.config.setting import require
from afspl_jax.data.bad_records import BadRecords
from afspl_jax.errors import UserError
from afspl_jax.types import Source


def known_sources() -> tuple[str, ...]:
  """How an experiment may name a source, sorted."""
  return (*(name for name in SOURCES.names() if name != "tfds"), "tfds:NAME")


def open_splits(splits: Sequence[str], data: Data, bad_records: BadRecords) -> dict[str, Source]:
  """Opens splits, which may be empty.

  Args:
    splits: some of "train", "validation" and "test".
    data: `source` is one of `known_sources`.
    bad_records: collects the records that are left out.

  Raises:
    UserError: the source is unknown, or its data is missing or cannot be used.
  """
  kind, _, which = data.source.partition(":")
  if kind == "tfds":
    require("data.source", data.source, bool(which), f"one of {', '.join(known_sources())}")
  else:
    kind = data.source
  return SOURCES.load(kind, known_sources()).open_splits(splits, data, bad_records)


def open_sources(data: Data, splits: Sequence[str]) -> dict[str, Source]:
  """Opens splits for a run, and prints which records were left out.

  Raises:
    UserError: as `open_splits`; more than `data.max_bad` records are bad; a split is empty, or the
      source does not have it.
  """
  bad_records = BadRecords(data.max_bad)
  sources = open_splits(splits, data, bad_records)
  bad_records.report()
  for split in splits:
    if split not in sources or not sources[split].images():
      where = data.dir or "the working directory"
      raise UserError(
        f"data.source={data.source}: expected images in every split; got none of {split} in"
        f" {where}. Look at it with: afspl prepare"
      )
  return sources


def open_source(data: Data, split: str) -> Source:
  """Opens one split as `open_sources` does."""
  return open_sources(data, (split,))[split]
