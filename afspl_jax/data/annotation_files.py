"""Annotation files as benchmarks ship them: one for each split, or one for all."""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from afspl_jax.data.bad_records import Faults, Malformed
from afspl_jax.data.image_files import missing
from afspl_jax.data.records import Distinct, fields, text
from afspl_jax.errors import UserError

Value = TypeVar("Value")
_SPLITS = {"train": "train", "val": "validation", "dev": "validation", "test": "test"}


def by_name(
  base: Path, pattern: str, how: str, of: Collection[str] | None = None
) -> dict[str, Path]:
  """The files of a kind in a folder or its annotations/, by the split that their names say.

  Args:
    base: the folder of the data set.
    pattern: of the files' names, such as "captions*.json".
    how: where to get them; ends the message of MissingData.
    of: the splits whose files will be read, of which alone there must not be two; None for all.

  Returns:
    Files by split; a single one whose name says none is train's.

  Raises:
    MissingData: there is none.
    UserError: two are of one split, or the split of one of several is not to be seen.
  """
  places = (base, base / "annotations")
  files = sorted(path for place in places for path in place.glob(pattern) if path.is_file())
  if not files:
    raise missing(f"no {pattern} in {base.absolute()} or its folder annotations", how)
  out: dict[str, Path] = {}
  for path in files:
    said = re.search(rf"(?<![a-z])({'|'.join(_SPLITS)})", path.name)
    split = _SPLITS[said[0]] if said else "train" if len(files) == 1 else ""
    if not split or (split in out and (of is None or split in of)):
      other = f"{out[split]} and {path}" if split else f"{path}, whose name says no split"
      raise UserError(
        f"{base}: expected one {pattern} for each of train, val and test; got {other}. Move one"
        " away."
      )
    out[split] = path
  return out


def one_of(base: Path, patterns: Sequence[str], how: str) -> Path:
  """The one file of a kind in a folder.

  Args:
    base: the folder of the data set.
    patterns: of its name.
    how: where to get it; ends the message of MissingData.

  Raises:
    MissingData: there is none.
    UserError: there are several.
  """
  found = sorted({path for name in patterns for path in base.glob(name) if path.is_file()})
  if not found:
    raise missing(f"no {' or '.join(patterns)} in {base.absolute()}", how)
  if len(found) > 1:
    raise UserError(
      f"{base}: expected one of {', '.join(patterns)}; got {', '.join(p.name for p in found)}."
      " Move all but one away."
    )
  return found[0]


@dataclass
class Keyed(Generic[Value]):
  """Entries of a list by an id that each has."""

  values: dict[str, tuple[str, Value]]  # where each is, and what it says
  left_out: set[str]  # ids of those that are malformed

  def knows(self, number: str, where: str, key: str, of: str) -> bool:
    """Whether another entry's reference to one of these leads to one that was not left out.

    Raises:
      Malformed: it leads nowhere.
    """
    if number not in self.values and number not in self.left_out:
      raise Malformed(
        where,
        f"{key} unknown",
        f'"{key}" must be that of an entry in "{of}"; got {number!r:.60}. Correct or remove it.',
      )
    return number in self.values


def keyed(
  entries: Iterable[tuple[str, Any]],
  key: str,
  read: Callable[[dict[str, Any], str], Value],
  faults: Faults,
) -> Keyed[Value]:
  """Reads the entries of a list that have ids.

  Args:
    entries: each with where it is.
    key: of the id, which must be of one entry alone.
    read: gives what is wanted of an entry; may raise Malformed.
    faults: what may be left out.
  """
  distinct = Distinct(key)
  out: Keyed[Value] = Keyed({}, set())
  for where, entry in entries:
    with faults.skipping():
      number = text(fields(entry, where), key, where, number=True)
      distinct.add(number, where)
      out.left_out.add(number)
      out.values[number] = where, read(entry, where)
      out.left_out.discard(number)
  return out
