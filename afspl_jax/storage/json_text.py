"""Parses JSON from outside: stricter than Python's parser, and with a limit on nesting."""

import json
import math
import re
from typing import Any

MAX_DEPTH = 64  # data sets, models and runs need a tenth of it

# Strings, which are keys before a colon; braces; and words, which are numbers and constants.
_TOKEN = re.compile(r'(?P<text>"(?:[^"\\]|\\.)*+")(?P<colon>\s*+:)?|[{}]|[\w.+-]++', re.DOTALL)


class _NotStrictError(Exception):
  """Python's parser accepts the text, and JSON's readers differ in what it means."""


def parse_json(text: str | bytes) -> Any:
  """Parses a JSON text.

  Python's own parser keeps the last of several values of one key. It accepts NaN, Infinity and
  numbers beyond the range of floats, which then have to be looked for everywhere. And it accepts
  values as deep as its stack allows; showing, comparing or hashing such a value can then raise a
  RecursionError.

  Raises:
    ValueError: the text is not JSON, cannot be decoded, has a key twice in one object, a number
      that is not finite or an integer of more digits than Python converts, or is nested more than
      `MAX_DEPTH` deep.
  """
  try:
    value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)
  except RecursionError:
    raise ValueError("values nested too deep") from None
  except _NotStrictError:
    raise _locate(text) from None
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


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) != len(pairs):
    raise _NotStrictError
  return found


def _refuse(constant: str) -> None:
  raise _NotStrictError


def _finite(text: str) -> float:
  value = float(text)
  if math.isinf(value):
    raise _NotStrictError
  return value


def _locate(text: str | bytes) -> ValueError:
  """Names the first key that is there twice or number that is not finite, with its place."""
  if isinstance(text, bytes):
    text = text.decode(json.detect_encoding(text), "surrogatepass")
  objects: list[set[str]] = []
  for token in _TOKEN.finditer(text):
    word, problem = token[0], ""
    if word == "{":
      objects.append(set())
    elif word == "}":
      objects.pop()
    elif token["colon"]:
      key = json.loads(token["text"])
      problem = f"the key {key!r:.60} twice in one object" if key in objects[-1] else ""
      objects[-1].add(key)
    elif not token["text"] and not _is_strict(word):
      problem = f"the number {word:.60}, which is not finite"
    if problem:
      return json.JSONDecodeError(problem, text, token.start())
  return ValueError("a key twice in one object, or a number that is not finite")


def _is_strict(word: str) -> bool:
  if word in ("true", "false", "null") or word.lstrip("-").isdecimal():
    return True
  return math.isfinite(float(word))
