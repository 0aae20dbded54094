"""Reads and writes the fields of a Hugging Face config.json, strictly."""

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

from afspl_jax.errors import UserError

# Limits, because the shapes of a model are computed before it is compared with its weights, and
# that takes time for each layer.
_MOST = {"layers": 1 << 7, "id": 1 << 31}  # by the end of a field's name
_MOST_ELSE = 1 << 20  # the largest T5 has 2**16


def read_fields(cls: type, names: Mapping[str, str], raw: Mapping[str, Any], where: str) -> dict:
  """Reads the fields of a config dataclass from a config.json.

  Args:
    cls: the dataclass; its defaults, which apply to missing fields, must be those of transformers.
    names: our field names to Hugging Face's.
    raw: the parsed config.json, or a part of it; null means the default.
    where: its name in messages.

  Returns:
    Keyword arguments for `cls`.

  Raises:
    UserError: a field has a wrong type, or is a size below 1 or beyond that of any model; the
      message names all such fields.
  """
  hints = get_type_hints(cls)
  fields, problems = {}, []
  for ours, theirs in names.items():
    value, expected = raw.get(theirs), hints[ours]
    allowed = get_args(expected) if isinstance(expected, types.UnionType) else (expected,)
    if theirs not in raw or (value is None and types.NoneType not in allowed):
      continue
    if ours.endswith("_id") and isinstance(value, list) and len(value) == 1:
      (value,) = value  # generation knows several ends, and so some files write a list
    most = _MOST.get(ours.rpartition("_")[2], _MOST_ELSE)
    if float in allowed and type(value) is int and abs(value) <= most:
      value = float(value)
    if type(value) not in allowed:
      wanted = " or ".join(type_.__name__ for type_ in allowed)
      problems.append(f'{where}: "{theirs}" must be {wanted}; got {value!r:.60}.')
    elif type(value) is int and value < 1 and not ours.endswith("_id"):
      problems.append(f'{where}: "{theirs}" must be at least 1; got {value!r:.60}.')
    elif type(value) is int and abs(value) > most:
      problems.append(f'{where}: "{theirs}" must be at most {most}; got {value!r:.60}.')
    elif type(value) is float and not math.isfinite(value):
      problems.append(f'{where}: "{theirs}" must be finite; got {value}.')
    else:
      fields[ours] = value
  if problems:
    raise UserError("\n".join([*problems, "Correct config.json, or take another checkpoint."]))
  return fields


def check_eos(eos_id: int, vocab_size: int, where: str) -> None:
  """Rejects an end token beyond the vocabulary.

  Raises:
    UserError: naming both.
  """
  if not 0 <= eos_id < vocab_size:
    raise UserError(
      f"{where}: expected an eos_token_id below vocab_size, {vocab_size}; got {eos_id}. Take the"
      " tokenizer's."
    )


def write_fields(config: Any, names: Mapping[str, str]) -> dict[str, Any]:
  """Renders a config dataclass's fields under their Hugging Face names."""
  values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
  return {theirs: values[ours] for ours, theirs in names.items()}
