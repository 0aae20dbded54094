"""The sources by name.

Each is one file here with `open_splits(splits, data, faults)`, which gives a `Source` for each
split; nothing else is edited to add one. Another package adds one by an entry point
(config/registry.py).
"""

from collections.abc import Sequence

from afspl_jax.config.experiment import Data
from afspl_jax.config.registry import SOURCES
from afspl_jax.config.setting import require
from afspl_jax.data.bad_records import Faults
from afspl_jax.errors import UserError
from afspl_jax.types import Source


def known() -> tuple[str, ...]:
  """How an experiment may name a source, sorted."""
  return (*(name for name in SOURCES.names() if name != "tfds"), "tfds:NAME")


def open_splits(splits: Sequence[str], data: Data, faults: Faults) -> dict[str, Source]:
  """Opens splits, which may be empty.

  Args:
    splits: of "train", "validation" and "test".
    data: `source` is one of `known`.
    faults: what may be left out, and what was.

  Raises:
    UserError: an unknown source, one whose data is not there, or data that cannot be used.
  """
  kind, _, which = data.source.partition(":")
  if kind == "tfds":
    require("data.source", data.source, bool(which), f"one of {', '.join(known())}")
  else:
    kind = data.source
  return SOURCES.load(kind, known()).open_splits(splits, data, faults)


def open_sources(data: Data, splits: Sequence[str]) -> dict[str, Source]:
  """Opens splits for a run, and tells what was left out of them.

  Raises:
    UserError: as `open_splits`; more records are malformed than `data.max_bad`; a split is empty,
      or the source has none of that name.
  """
  faults = Faults(data.max_bad)
  sources = open_splits(splits, data, faults)
  faults.tell()
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
