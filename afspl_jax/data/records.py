"""Reads records of annotation files and checks their values."""

import codecs
import functools
import hashlib
import itertools
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from afspl_jax.data.bad_records import BadRecord, BadRecords
from afspl_jax.errors import UserError
from afspl_jax.storage.json_text import parse_json

SPLITS = ("train", "validation", "test")
_SHARES = {"train": 7, "validation": 1, "test": 2}


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


def read_json_file(path: Path) -> Any:
  """Reads a JSON file.

  Raises:
    UserError: it cannot be read.
  """
  try:
    return parse_json(path.read_text(encoding="utf-8-sig"))
  except (ValueError, OSError) as error:  # ValueError: also for bytes that are not UTF-8
    raise UserError(f"{path}: expected JSON; got: {error}. Download it again.") from error


def list_entries(content: Any, key: str, path: Path) -> Iterator[tuple[str, Any]]:
  """The entries of a list in a JSON file, each with its position for messages.

  Args:
    content: of the file.
    key: of the list in it; "" if the content is the list.
    path: of the file.

  Raises:
    UserError: there is no such list.
  """
  found = content.get(key) if key and isinstance(content, dict) else None if key else content
  if not isinstance(found, list):
    wanted = f'an object with a list "{key}"' if key else "a list of records"
    got = sorted(content) if isinstance(content, dict) else type(content).__name__
    raise UserError(f"{path}: expected {wanted}; got {got!r:.200}. Download it again.")
  name = key.removesuffix("s") if key else "record"
  return ((f"{path}: {name} {number}", entry) for number, entry in enumerate(found, start=1))


def text_lines(path: Path, bad_records: BadRecords) -> Iterator[tuple[str, str]]:
  """The lines of a UTF-8 text file that are not blank, each with its position for messages.

  Raises:
    UserError: the file cannot be opened, or too many lines are not UTF-8.
  """
  try:
    opened = path.open("rb")
  except OSError as error:
    raise UserError(f"{path}: expected a file that can be read; got: {error}.") from error
  with opened as file:
    for number, raw in enumerate(file, start=1):
      line = ""
      with bad_records.skipping():
        try:
          line = (raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw).decode()
        except UnicodeDecodeError as error:
          raise BadRecord(
            f"{path}:{number}",
            "not UTF-8",
            f"expected UTF-8; got byte 0x{raw[error.start]:02x} at byte {error.start + 1}. Save"
            " the file as UTF-8.",
          ) from error
      if line.strip():
        yield f"{path}:{number}", line.rstrip("\r\n")


def json_line_values(path: Path, bad_records: BadRecords) -> Iterator[tuple[str, Any]]:
  """The values of a file of JSON lines, each with its position for messages.

  Raises:
    UserError: too many lines are not JSON.
  """
  for where, line in text_lines(path, bad_records):
    try:
      value = parse_json(line)
    except ValueError as error:
      with bad_records.skipping():
        raise BadRecord(
          where, "not JSON", f"expected a JSON object; got {line!r:.60}: {error}. Correct it."
        ) from error
      continue
    yield where, value


def as_object(record: Any, where: str) -> dict[str, Any]:
  """Returns the record if it is a JSON object.

  Raises:
    BadRecord: it is not.
  """
  if not isinstance(record, dict):
    raise BadRecord(where, "no object", f"expected a JSON object; got {record!r:.60}. Remove it.")
  return record


def text_field(record: dict[str, Any], key: str, where: str, *, number: bool = False) -> str:
  """Returns a text of the record, without white space at its ends.

  Args:
    record: the record.
    key: of the text.
    where: position of the record, for messages.
    number: whether it may be a number.

  Raises:
    BadRecord: it is missing, not a text, or blank.
  """
  if key not in record:
    raise BadRecord(
      where, f"no {key}", f'expected the key "{key}"; got {sorted(record)!r:.200}. Add it.'
    )
  value = record[key]
  if number and isinstance(value, int | float) and not isinstance(value, bool):
    return str(value)
  if not _is_text(value):
    kind = "text or a number" if number else "text"
    raise BadRecord(
      where, key, f'"{key}" must be {kind}, not blank; got {value!r:.60}. Correct it.'
    )
  return value.strip()


def text_list(record: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
  """Returns a list of at least one text of the record, without white space at their ends.

  Raises:
    BadRecord: the list is missing or empty, or an entry is not a text, or is blank.
  """
  value = record.get(key)
  if not isinstance(value, list) or not value or not all(map(_is_text, value)):
    raise BadRecord(
      where,
      key,
      f'"{key}" must be a list of at least one text, none of them blank; got {value!r:.60}.'
      ' Write ["..."] even for one.',
    )
  return tuple(one.strip() for one in value)


def nested_texts(record: dict[str, Any], key: str, inner: str, where: str) -> tuple[str, ...]:
  """Returns the texts in a list of objects, such as `{"sentences": [{"raw": "A dog."}]}`.

  Args:
    record: the record.
    key: of the list.
    inner: key of the text in each object.
    where: position of the record, for messages.

  Raises:
    BadRecord: the list is missing or empty, or a text in it is.
  """
  value = record.get(key)
  if not isinstance(value, list) or not value:
    raise BadRecord(
      where, key, f'"{key}" must be a list of at least one object; got {value!r:.60}. Correct it.'
    )
  return tuple(text_field(as_object(one, where), inner, where) for one in value)


def _is_text(value: Any) -> bool:
  """Whether a value is a text, is not blank, and can be encoded (JSON allows lone surrogates)."""
  if not isinstance(value, str) or not value.strip():
    return False
  try:
    value.encode()
  except UnicodeEncodeError:
    return False
  return True


class UniqueValues:
  """Checks that no two records have the same value.

  Args:
    key: of the value in a record.
  """

  def __init__(self, key: str):
    self._key = key
    self._seen: set[str] = set()

  def add(self, value: str, where: str) -> None:
    """Adds the value of a record.

    Raises:
      BadRecord: an earlier record has it.
    """
    if value in self._seen:
      raise BadRecord(
        where,
        f"{self._key} again",
        f'"{self._key}" must be unique; got {value!r:.60} again. Change it.',
      )
    self._seen.add(value)


class ConsistentValues:
  """Checks that all records of one image have the same value.

  Args:
    key: of the value in a record.
  """

  def __init__(self, key: str):
    self._key = key
    self._first: dict[str, str] = {}

  def add(self, image: str, value: str, where: str) -> None:
    """Adds the value of a record.

    Raises:
      BadRecord: an earlier record of the image has another.
    """
    first = self._first.setdefault(image, value)
    if first != value:
      raise BadRecord(
        where,
        f"{self._key} differs",
        f'"{self._key}" must be as in earlier records of {image!r:.60}, {first or "none"!r:.60};'
        f" got {value!r:.60}. Correct one of them.",
      )
