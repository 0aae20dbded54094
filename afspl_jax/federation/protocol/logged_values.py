"""Values as wire.jsonl notes them: said in words, and held against the form that each must have."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Line = Mapping[str, Any]  # of wire.jsonl

_NPY = 128  # bytes of the header before an array's numbers


class Form(NamedTuple):
  """How a value must look."""

  words: str  # for who reads that it does not
  fits: Callable[[Any, Line, str], bool]  # of the value, its line and the name of its record


def is_array(value: Any) -> bool:
  """Whether a recorded value is what is noted of an array."""
  return isinstance(value, dict) and "shape" in value


def said(value: Any) -> str:
  """A recorded value for people, in a few words."""
  if is_array(value):
    return f"{value['bytes']:,} bytes of {value['dtype']}, shape {tuple(value['shape'])}"
  if isinstance(value, dict) and "list" in value:
    return f"a list of {value['list']} {value['of']}"
  if isinstance(value, dict) and "text" in value:
    return f"a text of {value['length']} characters: {value['text']!r}..."
  if isinstance(value, dict):
    return ", ".join(f"{name} {part}" for name, part in value.items())
  return repr(value)


def _floats(value: Any, line: Line, record: str) -> bool:
  """Whether all of an array is rows of known leaves."""
  rows = line["records"][record].get("rows")
  leaves = line.get("leaves", ())
  if not is_array(value) or rows is None or len(rows) != len(leaves):
    return False
  sent = sum(leaf["width"] * number for leaf, number in zip(leaves, rows, strict=True))
  return _is_flat(value, "float32", 4, sent)


def _rows(value: Any, line: Line, record: str) -> bool:
  bits = sum(leaf["rows"] for leaf in line.get("leaves", ()))
  return is_array(value) and _is_flat(value, "uint8", 1, -(-bits // 8))


def _masked(value: Any, line: Line, record: str) -> bool:
  """Whether an array can be words of up to 8 bytes: the leaves' numbers, a weight and a count."""
  if not is_array(value):
    return False
  words = sum(leaf["width"] * leaf["rows"] for leaf in line.get("leaves", ())) + 2
  size = value["bytes"] - _NPY
  return 0 < size <= 8 * words and _is_flat(value, "uint8", 1, size)


def _is_flat(value: Mapping[str, Any], dtype: str, width: int, size: int) -> bool:
  """Whether an array is what it should be to the last byte; `width` is of a number, in bytes."""
  found = value["dtype"], value["shape"], value["bytes"]
  return found == (dtype, [size], _NPY + width * size)


FORMS = {
  "number": Form("one number", lambda value, line, record: type(value) in (int, float)),
  "count": Form(
    "one positive integer", lambda value, line, record: type(value) is int and value > 0
  ),
  "one": Form("the number 1", lambda value, line, record: type(value) is int and value == 1),
  "site": Form("the site's name", lambda value, line, record: value == line["client"]),
  "structure": Form(
    "the hash of the shared leaves' structure",
    lambda value, line, record: (
      value == line.get("structure") and re.fullmatch(r"[0-9a-f]{16}", value) is not None
    ),
  ),
  "floats": Form("float32 numbers that are all rows of the shared leaves", _floats),
  "rows": Form("as many bits as the shared leaves have rows", _rows),
  "masked": Form(
    "no more bytes than masked numbers of the shared leaves and two more take", _masked
  ),
  "bytes": Form(
    "bytes of keys or shares",
    lambda value, line, record: isinstance(value, dict) and set(value) == {"bytes"},
  ),
}
