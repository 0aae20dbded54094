"""Compares JSON values from outside with the shape that they should have.

A shape is one of:

| shape | matches |
| --- | --- |
| `int` | a whole number; not a bool |
| `float` | a number, whole or not |
| `str` | a text that can be written to a file |
| `bool`, `dict`, `list` | a value of that type, with any content |
| `None` | null |
| `object` | any value |
| `(A, B, ...)` | a value that matches one of the shapes; `()` matches none |
| `[A]` | a list whose items match A |
| `{"x": A, "y?": B}` | an object with the field `x` and perhaps `y`; other fields are ignored |
| `{"x": A, "*": C}` | an object with the field `x`; all other fields match C |

Numbers are at most 1e200 in size, so that sums and means of them are finite.

Why not a library: pydantic takes a tenth of a second to import, and each of these shapes would be
a class. Nothing here needs more than a yes or the place of the first difference.
"""

import re
from typing import Any

JsonShape = Any

_SURROGATE = re.compile("[\ud800-\udfff]")  # half of a character: cannot be encoded
_LARGEST = 1e200


def find_mismatch(value: Any, shape: JsonShape, where: str = "") -> str:
  """Returns the first part of a value that does not match the shape; "" if all match.

  Args:
    value: a parsed JSON value.
    shape: the shape that it should have.
    where: the place of the value, for the result.
  """
  if isinstance(shape, tuple):
    matches = any(not find_mismatch(value, option) for option in shape)
  elif isinstance(shape, dict):
    if isinstance(value, dict):
      return _find_mismatch_in_object(value, shape, where)
    matches = False
  elif isinstance(shape, list):
    if isinstance(value, list):
      found = (find_mismatch(item, shape[0], f"{where}[]") for item in value)
      return next((mismatch for mismatch in found if mismatch), "")
    matches = False
  elif shape is str:
    matches = isinstance(value, str) and not _SURROGATE.search(value)
  elif shape in (int, float):
    matches = type(value) in (int, shape) and abs(value) <= _LARGEST  # false for NaN
  else:
    matches = value is None if shape is None else isinstance(value, shape)
  return "" if matches else f"{where or 'it'} is {value!r:.60}"


def _find_mismatch_in_object(value: dict[str, Any], shape: dict[str, JsonShape], where: str) -> str:
  prefix = f"{where}." if where else ""
  for name in shape:
    if name != "*" and not name.endswith("?") and name not in value:
      return f"no {prefix}{name}"
  fields = {name.removesuffix("?"): field for name, field in shape.items()}
  for name, item in value.items():
    if name in fields or "*" in fields:
      field = fields.get(name, fields.get("*"))
      if mismatch := find_mismatch(item, field, f"{prefix}{name[:60]}"):
        return mismatch
  return ""
