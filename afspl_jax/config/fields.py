"""Fields of an experiment by their dotted names, such as `fed.rounds`: listed, checked, changed."""

import copy
import dataclasses
import difflib
import operator
from collections.abc import Mapping
from typing import Any

from afspl_jax.config.experiment import Experiment
from afspl_jax.config.setting import Agreed, Setting, require
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


def _settings(kind: type, prefix: str = "", agreed: Agreed = "") -> dict[str, Setting]:
  out: dict[str, Setting] = {}
  for field in dataclasses.fields(kind):
    own = field.metadata["setting"]
    name, agreed_here = f"{prefix}{field.name}", own.agreed or agreed
    if dataclasses.is_dataclass(field.type):
      out |= _settings(field.type, f"{name}.", agreed_here)  # type: ignore[arg-type]
    else:
      out[name] = dataclasses.replace(own, agreed=agreed_here)
  return out


SETTINGS = _settings(Experiment)  # what is known of every field, by its dotted name
GROUPS = {  # the meaning of every group, by its name
  field.name: field.metadata["setting"].meaning
  for field in dataclasses.fields(Experiment)
  if dataclasses.is_dataclass(field.type)
}


def check_values(values: object, group: str = "") -> None:
  """Checks values by the rules of their fields; rules of several fields are in runs/validate.py.

  Args:
    values: an Experiment, or a dataclass with some of the fields of one of its groups.
    group: the group's name.

  Raises:
    SettingError: naming the first field with a value that is not legal.
  """
  defaults = dict(known_fields(Experiment()))
  for name, value in known_fields(values, f"{group}." if group else ""):
    rule = SETTINGS[name]
    require(name, value, rule.allows(value), rule.legal(defaults[name]))


def agreed_names(when: Agreed) -> tuple[str, ...]:
  """Settings that a server and its sites compare, in the order of the fields.

  Args:
    when: "always", or "split": also where they split one data set.
  """
  return tuple(name for name, rule in SETTINGS.items() if rule.agreed == when)


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
    parent = operator.attrgetter(group)(config) if group else config
    # Equal numbers must make equal configs: 0 and 0.0 differ in JSON, and so in a digest.
    setattr(parent, leaf, float(value) if isinstance(fields[name], float) else value)
  return config


def leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Plain nested values by their dotted names."""
  out: dict[str, Any] = {}
  for name, value in tree.items():
    nested = isinstance(value, Mapping)
    out |= leaves(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
  return out


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Plain nested values from values by dotted names: the inverse of `leaves`."""
  out: dict[str, Any] = {}
  for name, value in flat.items():
    *groups, last = name.split(".")
    inner = out
    for group in groups:
      inner = inner.setdefault(group, {})
    inner[last] = value
  return out


# What runs of earlier versions did that had no such field, or called it otherwise.
_BEFORE = {"prompter.routing": "none"}
_RENAMED = {("prompter.routing", "trained"): "none"}


def from_dict(values: Mapping[str, Any]) -> Experiment:
  """The experiment of plain nested values, as config.json stores them, also of earlier versions.

  Args:
    values: what is absent has its default, or what it meant before there was such a field.

  Raises:
    UserError: a field that is not known, a value of the wrong type, or a run that cannot be read.
  """
  given = leaves(values)
  if given.get("prompter.routing") == "sites" and "prompter.site_prompts" not in given:
    raise UserError(
      "prompter.routing: expected a run with prompts of sites; got one from before them, whose pool"
      " had the keys of sites"
    )
  flat = _BEFORE | {name: _RENAMED.get((name, str(v)), v) for name, v in given.items()}
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
  """Says that there is no such field, which one may be meant, and which there are near it."""
  inside = [field for field in fields if field.startswith(f"{name}.")]
  group = name.rpartition(".")[0]
  near = inside or [field for field in fields if group and field.startswith(f"{group}.")]
  groups = sorted({field.split(".")[0] for field in fields})
  return f"no such field.{_meant(name, fields)} Known here: {', '.join(near or groups)}"


def _meant(name: str, fields: Mapping[str, object]) -> str:
  """The likeliest field: by the whole name, or by the last part where the group is another."""
  by_leaf: dict[str, str] = {}
  for field in fields:
    by_leaf.setdefault(field.rpartition(".")[2], field)
  close = difflib.get_close_matches(name, fields, n=1, cutoff=0.75)
  leaves = difflib.get_close_matches(name.rpartition(".")[2], by_leaf, n=1, cutoff=0.8)
  found = [*close, *(by_leaf[leaf] for leaf in leaves)]
  return f" Did you mean {found[0]}?" if found and found[0] != name else ""
