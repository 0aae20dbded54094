"""Values in the disclosure log: how they are described, and which form each must have."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

LogLine = Mapping[str, Any]  # of wire.jsonl

_QUERY = "sites/query/kernel"  # the leaf that reads an image's feature
_NPY = 128  # bytes of the header before an array's numbers


class ValueForm(NamedTuple):
  """How a value must look."""

  description: str  # for messages and docs/audit.md
  fits: Callable[[Any, LogLine, str], bool]  # takes the value, its line and its record's name


def is_array(value: Any) -> bool:
  """Whether a logged value describes an array."""
  return isinstance(value, dict) and "shape" in value


def describe_value(value: Any) -> str:
  """A logged value in a few words, for people."""
  if is_array(value):
    return f"{value['bytes']:,} bytes of {value['dtype']}, shape {tuple(value['shape'])}"
  if isinstance(value, dict) and "list" in value:
    return f"a list of {value['list']} {value['of']}"
  if isinstance(value, dict) and "text" in value:
    return f"a text of {value['length']} characters: {value['text']!r}..."
  if isinstance(value, dict):
    return ", ".join(f"{name} {part}" for name, part in value.items())
  return repr(value)


def _floats(value: Any, line: LogLine, record: str) -> bool:
  """Whether an array holds rows of known leaves and nothing else."""
  rows = line["records"][record].get("rows")
  leaves = line.get("leaves", ())
  if not is_array(value) or rows is None or len(rows) != len(leaves):
    return False
  sent = sum(leaf["width"] * number for leaf, number in zip(leaves, rows, strict=True))
  return _is_flat(value, "float32", 4, sent)


def _rows(value: Any, line: LogLine, record: str) -> bool:
  bits = sum(leaf["rows"] for leaf in line.get("leaves", ()))
  return is_array(value) and _is_flat(value, "uint8", 1, -(-bits // 8))


def _masked(value: Any, line: LogLine, record: str) -> bool:
  """Whether an array can be words of up to 8 bytes: the leaves' numbers, a weight and a count."""
  if not is_array(value):
    return False
  words = sum(leaf["width"] * leaf["rows"] for leaf in line.get("leaves", ())) + 2
  size = value["bytes"] - _NPY
  return 0 < size <= 8 * words and _is_flat(value, "uint8", 1, size)


def _mean(value: Any, line: LogLine, record: str) -> bool:
  return is_array(value) and _is_flat(value, "float32", 4, _feature_width(line))


def _covariance(value: Any, line: LogLine, record: str) -> bool:
  width = _feature_width(line)
  return is_array(value) and _is_flat(value, "float32", 4, width * (width + 1) // 2)


def _feature_width(line: LogLine) -> int:
  """The width of the joint features, as the query of the sites' prompts reads them."""
  return sum(leaf["rows"] for leaf in line.get("leaves", ()) if leaf["name"] == _QUERY)


def _is_flat(value: Mapping[str, Any], dtype: str, width: int, size: int) -> bool:
  """Whether an array has this dtype and exactly `size` numbers of `width` bytes."""
  found = value["dtype"], value["shape"], value["bytes"]
  return found == (dtype, [size], _NPY + width * size)


FORMS = {
  "number": ValueForm("one number", lambda value, line, record: type(value) in (int, float)),
  "count": ValueForm(
    "one positive integer", lambda value, line, record: type(value) is int and value > 0
  ),
  "one": ValueForm("the number 1", lambda value, line, record: type(value) is int and value == 1),
  "site": ValueForm("the site's name", lambda value, line, record: value == line["client"]),
  "structure": ValueForm(
    "the hash of the shared leaves' structure",
    lambda value, line, record: (
      value == line.get("structure") and re.fullmatch(r"[0-9a-f]{16}", value) is not None
    ),
  ),
  "floats": ValueForm("float32 numbers, all of them rows of the shared leaves", _floats),
  "rows": ValueForm("one bit for each row of the shared leaves", _rows),
  "masked": ValueForm(
    "masked numbers: at most one for each number of the shared leaves and two more", _masked
  ),
  "mean": ValueForm("float32 numbers: one for each joint feature", _mean),
  "covariance": ValueForm("float32 numbers: one for each pair of joint features", _covariance),
  "bytes": ValueForm(
    "bytes of keys, shares or a signature",
    lambda value, line, record: isinstance(value, dict) and set(value) == {"bytes"},
  ),
}
