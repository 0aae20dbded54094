"""Reads records of annotation files and checks their values."""

import codecs
import math
import numbers
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from afspl_jax.data.bad_records import BadRecord, BadRecords
from afspl_jax.errors import UserError
from afspl_jax.storage.json_text import parse_json
from afspl_jax.storage.text_check import is_blank, is_text


def read_json_file(path: Path) -> Any:
  """Reads a JSON file.

  Raises:
    UserError: it cannot be read.
  """
  try:
    return parse_json(path.read_text(encoding="utf-8-sig"))
  except (ValueError, OSError) as error:  # ValueError: also for bytes that are not UTF-8
    raise UserError(
      f"{path}: expected JSON; got: {error}. Correct it, or download it again."
    ) from error


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
  if number and (text := number_text(value)):
    return text
  if not is_text(value):
    kind = "text or a number" if number else "text"
    flaw = "without NUL" if isinstance(value, str) and "\0" in value else "not blank"
    raise BadRecord(where, key, f'"{key}" must be {kind}, {flaw}; got {value!r:.60}. Correct it.')
  return value.strip()


def number_text(value: Any) -> str:
  """A number of a file as text, without the point of a whole one (2.0 is "2"); "" for no number."""
  if isinstance(value, bool) or not isinstance(value, numbers.Real):
    return ""
  if isinstance(value, numbers.Integral):
    return str(int(value))
  if not math.isfinite(value):
    return ""
  return str(math.floor(value) if value == math.floor(value) else value)


def id_field(record: dict[str, Any], key: str, where: str) -> str:
  """Returns an id of the record to which other records refer; 139, 139.0 and "000139" are one.

  Raises:
    BadRecord: it is missing, neither a text nor a number, or blank.
  """
  return plain_id(text_field(record, key, where, number=True))


def plain_id(text: str) -> str:
  """An id without leading zeros, if it is a number."""
  return text.lstrip("0") or "0" if text.isascii() and text.isdigit() else text


def text_list(
  record: dict[str, Any], key: str, where: str, blanks: BadRecords | None = None
) -> tuple[str, ...]:
  """Returns a list of at least one text of the record, without white space at their ends.

  Args:
    record: the record.
    key: of the list.
    where: position of the record, for messages.
    blanks: counts the blank texts, which are skipped; None if a blank text is an error.

  Raises:
    BadRecord: the list is missing or empty, or an entry is not a text, or is blank; with `blanks`,
      if all of them are.
  """
  value = record.get(key)
  if isinstance(value, list) and blanks is not None:
    value = _without_blanks(value, where, blanks)
  if not isinstance(value, list) or not value or not all(map(is_text, value)):
    raise BadRecord(
      where,
      key,
      f'"{key}" must be a list of at least one text, none of them blank; got'
      f" {record.get(key)!r:.60}."
      ' Write ["..."] even for one.',
    )
  return tuple(one.strip() for one in value)


def nested_texts(
  record: dict[str, Any], key: str, inner: str, where: str, blanks: BadRecords | None = None
) -> tuple[str, ...]:
  """Returns the texts in a list of objects, such as `{"sentences": [{"raw": "A dog."}]}`.

  Args:
    record: the record.
    key: of the list.
    inner: key of the text in each object.
    where: position of the record, for messages.
    blanks: counts the blank texts, which are skipped; None if a blank text is an error.

  Raises:
    BadRecord: the list is missing or empty, or a text in it is; with `blanks`, if all of them are.
  """
  value = record.get(key)
  if not isinstance(value, list) or not value:
    raise BadRecord(
      where, key, f'"{key}" must be a list of at least one object; got {value!r:.60}. Correct it.'
    )
  entries = [as_object(one, where) for one in value]
  if blanks is not None and all(inner in entry for entry in entries):
    texts = _without_blanks([entry[inner] for entry in entries], where, blanks)
    entries = [{inner: text} for text in texts] or entries
  return tuple(text_field(entry, inner, where) for entry in entries)


def _without_blanks(texts: list[Any], where: str, blanks: BadRecords) -> list[Any]:
  """Leaves out blank texts, and null, which many exports write for one."""
  kept = [
    text for text in texts if not (text is None or (isinstance(text, str) and is_blank(text)))
  ]
  if kept:
    blanks.blank_texts += [where] * (len(texts) - len(kept))
  return kept


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
