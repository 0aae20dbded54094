"""JSON from outside: nested so little that whoever shows, compares or hashes it comes to an end."""

import json
from typing import Any

DEEPEST = 64  # what data sets, models and runs write is a tenth of it


def parse(text: str | bytes) -> Any:
  """The value of a JSON text.

  Python's own parser takes values as deep as its stack allows, and `repr` of such a value, called
  from a little further up the stack, then ends in a RecursionError.

  Raises:
    ValueError: it is no JSON, cannot be decoded, has an integer of more digits than Python
      converts, or is nested more than `DEEPEST` deep.
  """
  try:
    value = json.loads(text)
  except RecursionError:
    raise ValueError("values nested too deep") from None
  level = [value] if isinstance(value, dict | list) else []
  for _ in range(DEEPEST + 1):
    if not level:
      return value
    level = [
      inner
      for outer in level
      for inner in (outer.values() if isinstance(outer, dict) else outer)
      if isinstance(inner, dict | list)
    ]
  raise ValueError(f"values nested more than {DEEPEST} deep")
