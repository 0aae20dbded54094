"""Fields of an experiment by their dotted names, such as `fed.rounds`: listed, checked, changed."""

import copy
import dataclasses
import operator
from collections.abc import Mapping
from typing import Any

from afspl_jax.config.experiment import Experiment
from afspl_jax.errors import UserError

_TOO_LARGE = 2**63  # for an array, a message or a float


def known_fields(config: object, prefix: str = "") -> list[tuple[str, object]]:
  """Every leaf of nested dataclasses as a dotted name with its value."""
  out: list[tuple[str, object]] = []
  for field in dataclasses.fields(config):  # type: ignore[arg-type]
    value = getattr(config, field.name)
    name = f"{prefix}{field.name}"
    out += known_fields(value, f"{name}.") if dataclasses.is_dataclass(value) else [(name, value)]
  return out


def changed(config: Experiment, changes: Mapping[str, Any]) -> Experiment:
  """A copy of `config` with other values of some fields.

  Args:
    config: stays as it is.
    changes: values by dotted name; an int is taken for a float field.

  Raises:
    UserError: a field that is not known, or a value of the wrong type.
  """
  fields = dict(known_fields(config))
  config = copy.deepcopy(config)
  for name, value in changes.items():
    if name not in fields:
      raise UserError(f"{name}: {unknown(name, fields)}")
    check_type(name, value, fields[name])
    group, _, leaf = name.rpartition(".")
    owner = operator.attrgetter(group)(config) if group else config
    # Equal numbers must make equal configs: 0 and 0.0 are told apart in JSON, and so by digest.
    setattr(owner, leaf, float(value) if isinstance(fields[name], float) else value)
  return config


def leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Plain nested values by their dotted names."""
  out: dict[str, Any] = {}
  for name, value in tree.items():
    nested = isinstance(value, Mapping)
    out |= leaves(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
  return out


def from_dict(values: Mapping[str, Any]) -> Experiment:
  """The experiment of plain nested values, as config.json stores them.

  Args:
    values: what is absent has its default.

  Raises:
    UserError: a field that is not known, or a value of the wrong type.
  """
  flat = leaves(values)
  # JSON has lists where a config has tuples.
  flat |= {name: tuple(value) for name, value in flat.items() if isinstance(value, list)}
  return changed(Experiment(), flat)


def check_type(name: str, value: object, default: object) -> None:
  """Refuses a value that is not of its field's type.

  Raises:
    UserError: naming the field, the type with an example, and the value.
  """
  number = type(value) in (int, float)
  if isinstance(default, tuple):
    fits = isinstance(value, tuple) and all(type(part) in (int, float) for part in value)
    wanted = "numbers, such as 0.5,0.5"
  else:
    fits = type(value) is type(default) or (number and isinstance(default, float))
    fits = fits and not (type(value) is int and abs(value) >= _TOO_LARGE)
    wanted = f"{type(default).__name__}, such as {default!r}"
  if not fits:
    raise UserError(f"{name}: expected {wanted}; got {value!r:.200}")


def unknown(name: str, fields: Mapping[str, object]) -> str:
  """Says that there is no such field, and which there are in its neighbourhood."""
  inside = [field for field in fields if field.startswith(f"{name}.")]
  group = name.rpartition(".")[0]
  near = inside or [field for field in fields if group and field.startswith(f"{group}.")]
  groups = sorted({field.split(".")[0] for field in fields})
  return f"no such field; known here: {', '.join(near or groups)}"
