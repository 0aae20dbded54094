"""Checks texts from outside: captions, questions, answers and names that people wrote."""

import re
import unicodedata
from typing import Any

# Letters and marks that are drawn as nothing, or as a gap: fillers, joiners, variation selectors.
_INVISIBLE = re.compile(
  "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0]"
)
_UNUSABLE = re.compile("[\0\ud800-\udfff]")  # NUL, and halves of characters: cannot be encoded


def is_text(value: Any) -> bool:
  """Whether a value is a text that can be used: not blank, without NUL, and it can be encoded.

  JSON allows lone surrogates, which UTF-8 has not.
  """
  return isinstance(value, str) and not is_blank(value) and not _UNUSABLE.search(value)


def is_blank(value: str) -> bool:
  """Whether a text has no visible character.

  White space, control characters and characters of zero width are not visible.
  """
  return all(
    _INVISIBLE.match(character) or unicodedata.category(character) in ("Cc", "Cf", "Zs", "Zl", "Zp")
    for character in value
  )
