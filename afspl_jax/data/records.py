"""Records of annotation files: read, and checked value by value."""

import codecs
import functools
import hashlib
import itertools
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from afspl_jax.data.bad_records import Faults, Malformed
from afspl_jax.errors import UserError
from afspl_jax.storage.json_text import parse

SPLITS = ("train", "validation", "test")
_SHARES = {"train": 7, "validation": 1, "test": 2}


@functools.cache
def portions(among: tuple[str, ...] = SPLITS) -> dict[str, tuple[float, float]]:
  """The part of all images that is a split's, as from where to where: 70, 10 and 20 %.

  Args:
    among: the splits to share them out to, in the same proportion.
  """
  total = sum(_SHARES[split] for split in among)
  ends = list(itertools.accumulate(_SHARES[split] for split in among))
  starts = [0, *ends[:-1]]
  return {s: (a / total, b / total) for s, a, b in zip(among, starts, ends, strict=True)}


def split_of(image: str, among: tuple[str, ...] = SPLITS) -> str:
  """The split of an image by its name's hash, on which alone it depends.

  Args:
    image: its name.
    among: the splits to choose from, each by its portion.
  """
  share = int.from_bytes(hashlib.sha256(image.encode()).digest()[:8], "big") / 2**64
  return next(split for split, (_, end) in portions(among).items() if share < end or end == 1)


def served(available: Collection[str]) -> dict[str, tuple[str, ...]]:
  """The splits that each part of a data set serves, where it has not a part for each.

  One part serves all. Without validation, train gives of its own; without test, validation does.

  Args:
    available: the splits that it has parts for.
  """
  if len(available) == 1:
    return {split: SPLITS for split in available}
  out: dict[str, tuple[str, ...]] = {split: (split,) for split in SPLITS if split in available}
  for lacking, giver in (("validation", "train"), ("test", "validation")):
    if lacking not in out and giver in out:
      out[giver] += (lacking,)
  return out


def read_json(path: Path) -> Any:
  """The content of a JSON file.

  Raises:
    UserError: it cannot be read.
  """
  try:
    return parse(path.read_text(encoding="utf-8-sig"))
  except (ValueError, OSError) as error:  # ValueError: also what is not UTF-8
    raise UserError(
      f"{path}: expected JSON; got what cannot be read: {error}. Fetch it again."
    ) from error


def members(content: Any, key: str, path: Path) -> Iterator[tuple[str, Any]]:
  """The entries of a list in a JSON file, each with where it is.

  Args:
    content: of the file.
    key: of the list in it; "" if it is the list.
    path: of the file.

  Raises:
    UserError: there is no such list.
  """
  found = content.get(key) if key and isinstance(content, dict) else None if key else content
  if not isinstance(found, list):
    wanted = f'an object with a list "{key}"' if key else "a list of records"
    got = sorted(content) if isinstance(content, dict) else type(content).__name__
    raise UserError(f"{path}: expected {wanted}; got {got!r:.200}. Fetch it again.")
  name = key.removesuffix("s") if key else "record"
  return ((f"{path}: {name} {number}", entry) for number, entry in enumerate(found, start=1))


def lines(path: Path, faults: Faults) -> Iterator[tuple[str, str]]:
  """The lines of a UTF-8 text file that are not blank, each with where it is.

  Raises:
    UserError: the file cannot be opened, or more lines are not UTF-8 than allowed.
  """
  try:
    opened = path.open("rb")
  except OSError as error:
    raise UserError(f"{path}: expected a file that can be read; got: {error}.") from error
  with opened as file:
    for number, raw in enumerate(file, start=1):
      line = ""
      with faults.skipping():
        try:
          line = (raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw).decode()
        except UnicodeDecodeError as error:
          raise Malformed(
            f"{path}:{number}",
            "not UTF-8",
            f"expected UTF-8; got byte 0x{raw[error.start]:02x} at byte {error.start + 1}. Save"
            " the file as UTF-8.",
          ) from error
      if line.strip():
        yield f"{path}:{number}", line.rstrip("\r\n")


def json_lines(path: Path, faults: Faults) -> Iterator[tuple[str, Any]]:
  """The values of a file with one in JSON on each line, each with where it is.

  Raises:
    UserError: more lines are not JSON than allowed.
  """
  for where, line in lines(path, faults):
    try:
      value = parse(line)
    except ValueError as error:
      with faults.skipping():
        raise Malformed(
          where, "not JSON", f"expected a JSON object; got {line!r:.60}: {error}. Correct it."
        ) from error
      continue
    yield where, value


def fields(record: Any, where: str) -> dict[str, Any]:
  """The record, if it is an object.

  Raises:
    Malformed: otherwise.
  """
  if not isinstance(record, dict):
    raise Malformed(where, "no object", f"expected a JSON object; got {record!r:.60}. Remove it.")
  return record


def text(record: dict[str, Any], key: str, where: str, *, number: bool = False) -> str:
  """A text of the record as it is, but for white space at its ends.

  Args:
    record: holds it.
    key: its name.
    where: the record is, for messages.
    number: whether it may be a number.

  Raises:
    Malformed: it is not there, not a text, or blank.
  """
  if key not in record:
    raise Malformed(
      where, f"no {key}", f'expected the key "{key}"; got {sorted(record)!r:.200}. Add it.'
    )
  value = record[key]
  if number and isinstance(value, int | float) and not isinstance(value, bool):
    return str(value)
  if not _is_text(value):
    kind = "text or a number" if number else "text"
    raise Malformed(
      where, key, f'"{key}" must be {kind}, not blank; got {value!r:.60}. Correct it.'
    )
  return value.strip()


def texts(record: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
  """Texts of the record, at least one, as they are but for white space at their ends.

  Raises:
    Malformed: they are not there, or not all are texts, or one is blank.
  """
  value = record.get(key)
  if not isinstance(value, list) or not value or not all(map(_is_text, value)):
    raise Malformed(
      where,
      key,
      f'"{key}" must be a list of at least one text, none of them blank; got {value!r:.60}.'
      ' Write ["..."] even for one.',
    )
  return tuple(one.strip() for one in value)


def texts_of(record: dict[str, Any], key: str, inner: str, where: str) -> tuple[str, ...]:
  """The texts of a list of objects, such as `{"sentences": [{"raw": "A dog."}]}`.

  Args:
    record: holds it.
    key: its name.
    inner: the texts' name in each of the objects.
    where: the record is, for messages.

  Raises:
    Malformed: it is not there, empty, or one of them is malformed.
  """
  value = record.get(key)
  if not isinstance(value, list) or not value:
    raise Malformed(
      where, key, f'"{key}" must be a list of at least one object; got {value!r:.60}. Correct it.'
    )
  return tuple(text(fields(one, where), inner, where) for one in value)


def _is_text(value: Any) -> bool:
  """Whether it is text, not blank, and can be written: JSON can spell halves of characters."""
  if not isinstance(value, str) or not value.strip():
    return False
  try:
    value.encode()
  except UnicodeEncodeError:
    return False
  return True


class Distinct:
  """Values that no two records share.

  Args:
    key: their name in a record.
  """

  def __init__(self, key: str):
    self._key = key
    self._seen: set[str] = set()

  def add(self, value: str, where: str) -> None:
    """Takes note of a record's value.

    Raises:
      Malformed: an earlier record has it.
    """
    if value in self._seen:
      raise Malformed(
        where,
        f"{self._key} again",
        f'"{self._key}" must be of this record alone; got {value!r:.60} again. Change it.',
      )
    self._seen.add(value)


class Agreed:
  """Values that all records of one image share.

  Args:
    key: their name in a record.
  """

  def __init__(self, key: str):
    self._key = key
    self._first: dict[str, str] = {}

  def add(self, image: str, value: str, where: str) -> None:
    """Takes note of a record's value.

    Raises:
      Malformed: an earlier record of the image has another.
    """
    first = self._first.setdefault(image, value)
    if first != value:
      raise Malformed(
        where,
        f"{self._key} differs",
        f'"{self._key}" must be that of earlier records of {image!r:.60}, {first or "none"!r:.60};'
        f" got {value!r:.60}. Correct one of them.",
      )
