"""Parses JSON from outside, with a limit on its nesting."""

import json
from typing import Any

MAX_DEPTH = 64  # data sets, models and runs need a tenth of it


def parse_json(text: str | bytes) -> Any:
  """Parses a JSON text.

  Python's own parser accepts values as deep as its stack allows. Showing, comparing or hashing such
  a value can then raise a RecursionError.

  Raises:
    ValueError: the text is not JSON, cannot be decoded, has an integer of more digits than Python
      converts, or is nested more than `MAX_DEPTH` deep.
  """
  try:
    value = json.loads(text)
  except RecursionError:
    raise ValueError("values nested too deep") from None
  level = [value] if isinstance(value, dict | list) else []
  for _ in range(MAX_DEPTH + 1):
    if not level:
      return value
    level = [
      inner
      for outer in level
      for inner in (outer.values() if isinstance(outer, dict) else outer)
      if isinstance(inner, dict | list)
    ]
  raise ValueError(f"values nested more than {MAX_DEPTH} deep")
