"""Annotation files as benchmarks ship them: one for each split, or one for all splits."""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from afspl_jax.data.bad_records import BadRecord, BadRecords
from afspl_jax.data.image_files import missing_data
from afspl_jax.data.records import UniqueValues, as_object, id_field
from afspl_jax.data.splits import named_split
from afspl_jax.errors import UserError

Value = TypeVar("Value")
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_BEGINNINGS = ("train", "val", "dev", "test")  # of words such as "trainset" and "validation"


def files_by_split(
  base: Path, pattern: str, how: str, of: Collection[str] | None = None
) -> dict[str, Path]:
  """Finds files in a folder or its annotations/, by the split in their names.

  Args:
    base: the folder of the data set.
    pattern: of the files' names, such as "captions*.json".
    how: where to get them; ends the message of MissingData.
    of: the splits whose files will be read; only these must not have two files. None for all.

  Returns:
    Files by split. A single file without a split in its name is that of train.

  Raises:
    MissingData: there is no such file.
    UserError: a split has two files, or one of several files has no split in its name.
  """
  places = (base, base / "annotations")
  files = sorted(path for place in places for path in place.glob(pattern) if path.is_file())
  if not files:
    raise missing_data(f"no {pattern} in {base.absolute()} or its folder annotations", how)
  out: dict[str, Path] = {}
  for path in files:
    split = _split_in(path.name) or ("train" if len(files) == 1 else "")
    if not split or (split in out and (of is None or split in of)):
      other = f"{out[split]} and {path}" if split else f"{path}, which has no split in its name"
      raise UserError(
        f"{base}: expected one {pattern} for each of train, val and test; got {other}. Move one"
        " away."
      )
    out[split] = path
  return out


def _split_in(name: str) -> str:
  """The split of the first word in a file's name that is one, or else begins as one; or ""."""
  words = _WORD.findall(name)
  begun = (
    named_split(beginning)
    for word in words
    for beginning in _BEGINNINGS
    if word.casefold().startswith(beginning)
  )
  return next(filter(None, map(named_split, words)), "") or next(begun, "")


def find_single_file(base: Path, patterns: Sequence[str], how: str) -> Path:
  """Finds a file of which a folder has exactly one.

  Args:
    base: the folder of the data set.
    patterns: of its name.
    how: where to get it; ends the message of MissingData.

  Raises:
    MissingData: there is no such file.
    UserError: there are several.
  """
  found = sorted({path for name in patterns for path in base.glob(name) if path.is_file()})
  if not found:
    raise missing_data(f"no {' or '.join(patterns)} in {base.absolute()}", how)
  if len(found) > 1:
    raise UserError(
      f"{base}: expected one of {', '.join(patterns)}; got {', '.join(p.name for p in found)}."
      " Move all but one away."
    )
  return found[0]


@dataclass
class EntriesById(Generic[Value]):
  """Entries of a list by their ids."""

  values: dict[str, tuple[str, Value]]  # position in the file, for messages, and value
  left_out: set[str]  # ids of the bad entries

  def knows(self, number: str, where: str, key: str, of: str) -> bool:
    """Whether a reference from another list leads to an entry that was not left out.

    Args:
      number: the id that the other entry refers to.
      where: the other entry, for messages.
      key: of the reference.
      of: key of the list that should have the id.

    Raises:
      BadRecord: there is no such id.
    """
    if number not in self.values and number not in self.left_out:
      raise BadRecord(
        where,
        f"{key} unknown",
        f'"{key}" must be the id of an entry in "{of}"; got {number!r:.60}. Correct or remove it.',
      )
    return number in self.values


def entries_by_id(
  entries: Iterable[tuple[str, Any]],
  key: str,
  read: Callable[[dict[str, Any], str], Value],
  bad_records: BadRecords,
) -> EntriesById[Value]:
  """Reads the entries of a list by their ids.

  Args:
    entries: with their positions, for messages.
    key: of the id, which must be unique.
    read: makes the value of an entry; may raise BadRecord.
    bad_records: collects the records that are left out.
  """
  distinct = UniqueValues(key)
  out: EntriesById[Value] = EntriesById({}, set())
  for where, entry in entries:
    with bad_records.skipping():
      number = id_field(as_object(entry, where), key, where)
      distinct.add(number, where)
      out.left_out.add(number)
      out.values[number] = where, read(entry, where)
      out.left_out.discard(number)
  return out
