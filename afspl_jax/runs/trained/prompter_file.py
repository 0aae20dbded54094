"""A trained prompter as one safetensors file, to be used elsewhere with the same two backbones.

The file may come from anyone: it is compared with what its own settings ask for before it is used,
and nothing in it is executed.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from afspl_jax.config.experiment import Experiment, to_dict
from afspl_jax.config.fields import changed, from_dict, known_fields
from afspl_jax.errors import UserError
from afspl_jax.models.prompter.local import join
from afspl_jax.runs.validate import check
from afspl_jax.storage.atomic_files import replaced_file
from afspl_jax.storage.json_text import parse
from afspl_jax.storage.pytrees import named_leaves, zeros_like
from afspl_jax.storage.versions import installed_version
from afspl_jax.types import Params

_FORMAT = 1
_KEY = "afspl_jax"  # of the file's metadata: all of ours, as JSON
_LONGEST = 1 << 20  # characters of it
# What settings may ask for before anything is allocated, by field or by group; real ones are far
# below. Others, such as numbers of examples, allocate nothing where a file is used.
_LARGEST = {
  "prompter": 1 << 16,
  "data.instruction_length": 1 << 12,
  "eval.max_tokens": 1 << 12,
  "eval.min_tokens": 1 << 12,
  "eval.beams": 1 << 12,
  "eval.no_repeat_ngram": 1 << 12,
}


@dataclasses.dataclass(frozen=True)
class Described:
  """What a file says of its prompter."""

  config: Experiment  # without paths of the machine that it was trained on
  backbones: dict[str, str]  # hashes of "clip" and "t5"
  round: int  # after which it was taken
  site: str = ""  # whose own prompt is in the file; "": the global prompter alone
  scores: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)  # by split


def write(file: Path, described: Described, shared: Params, own: Params) -> Described:
  """Writes a file, whole or not at all.

  Args:
    file: its name ends with .safetensors.
    described: what is said of the prompter.
    shared: the leaves that travel (NumPy).
    own: those of `described.site`, or {}: they were never meant to leave it.

  Returns:
    What the file says: without the paths of this machine.

  Raises:
    UserError: another ending, or the disk refuses.
  """
  if file.suffix != ".safetensors":
    raise UserError(f"{file}: expected a name that ends with .safetensors")
  described = dataclasses.replace(described, config=_without_paths(described.config))
  said = {
    "format": _FORMAT,
    "version": installed_version("afspl_jax"),
    **dataclasses.asdict(described),
    "config": to_dict(described.config),
  }
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    leaves = named_leaves(join(shared, own))
    metadata = {_KEY: json.dumps(said, sort_keys=True)}
    with replaced_file(file) as scratch:
      save_file(leaves, scratch, metadata=metadata)
      if not described.site:
        scratch.chmod(0o644)  # safetensors makes it readable by its owner alone
  except (OSError, SafetensorError) as error:
    raise UserError(f"{file}: expected to write a prompter; got: {error}") from error
  return described


def describe(file: Path) -> Described:
  """Reads what a file says of its prompter.

  Raises:
    UserError: it is no such file, or its settings are none that can be used.
  """
  try:
    with safe_open(file, framework="np") as opened:
      text = (opened.metadata() or {}).get(_KEY, "")
  except (OSError, SafetensorError) as error:
    raise UserError(f"{file}: expected a file of `afspl export`; got: {error}") from error
  try:
    if not 0 < len(text) <= _LONGEST:
      raise ValueError(f"{len(text)} characters about a prompter")
    said = parse(text)
    if said["format"] != _FORMAT:
      raise ValueError(
        f"format {said['format']!r} of afspl_jax {said.get('version')!r}; this one reads {_FORMAT}"
      )
    described = Described(
      config=from_dict(said["config"]),
      backbones={kind: _name(said["backbones"][kind]) for kind in ("clip", "t5")},
      round=int(said["round"]),
      site=_name(said["site"]),
      scores=_scores(said["scores"]),
    )
    _check(described.config)
  except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
    raise UserError(
      f"{file}: expected a file of `afspl export`; got {type(error).__name__}: {str(error)[:300]}"
    ) from error
  return described


def read(file: Path, described: Described, shared: Params, own: Params) -> tuple[Params, Params]:
  """Reads a file's leaves.

  Args:
    file: as `describe` took it.
    described: what that gave.
    shared: shapes of the leaves that travel.
    own: shapes of a site's own; those of the file are read if it has a site.

  Returns:
    NumPy leaves of both; zeros of what is not in the file.

  Raises:
    UserError: names, shapes or types are not those of its settings, or a value is not finite.
  """
  wanted = join(shared, own if described.site else {})
  expected = named_leaves(wanted)
  form = {name: f"F32{list(leaf.shape)}" for name, leaf in expected.items()}
  try:
    with safe_open(file, framework="np") as opened:
      slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
      found = {name: f"{part.get_dtype()}{list(part.get_shape())}" for name, part in slices.items()}
      for name in sorted(found.keys() | form.keys()):
        if found.get(name) != form.get(name):
          raise ValueError(
            f"{name[:100]} is {found.get(name, 'missing')} and not {form.get(name, 'one of them')}"
          )
      leaves = [opened.get_tensor(name) for name in expected]
    for name, leaf in zip(expected, leaves, strict=True):
      if not np.isfinite(leaf).all():
        raise ValueError(f"{name} has values that are not finite")
  except (OSError, SafetensorError, ValueError) as error:
    raise UserError(
      f"{file}: expected the {len(form)} leaves of its own settings; got: {error}"
    ) from error
  tree = jax.tree.unflatten(jax.tree.structure(wanted), leaves)
  rest = zeros_like(own)
  return {name: tree[name] for name in shared}, {name: tree.get(name, rest[name]) for name in own}


def _without_paths(config: Experiment) -> Experiment:
  """The settings without what tells of this machine: of a folder, its last name alone."""
  changes = {"data.dir": ""}
  for kind in ("clip", "t5"):
    folder = Path(getattr(config.backbone, kind)).expanduser()
    if folder.is_absolute() or folder.is_dir():
      changes[f"backbone.{kind}"] = folder.resolve().name
  return changed(config, changes)


def _check(config: Experiment) -> None:
  """Refuses settings that no run has, or that would fill the memory."""
  check(config)
  for name, value in known_fields(config):
    largest = _LARGEST.get(name, _LARGEST.get(name.split(".")[0], math.inf))
    if isinstance(value, int) and value > largest:
      raise ValueError(f"{name} of {value}, more than {largest}")
  _, _, tokens = config.prompter.mapper.partition(":")  # of "pooled:N"
  if tokens.isdigit() and int(tokens) > _LARGEST["prompter"]:
    raise ValueError(f"prompter.mapper of {tokens} tokens, more than {_LARGEST['prompter']}")
  for kind in ("clip", "t5"):
    path = Path(_name(getattr(config.backbone, kind)))  # it is shown where the backbone is missing
    if path.is_absolute() or ".." in path.parts or "~" in str(path):
      raise ValueError(f"backbone.{kind} of {str(path)[:100]!r}, a path of another machine")


def _name(value: Any) -> str:
  if not isinstance(value, str) or len(value) > 200 or not (value.isprintable()):
    raise ValueError(f"{str(value)[:100]!r}, which is no name")
  return value


def _scores(found: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
  return {
    _name(split): {_name(name): float(value) for name, value in scores.items()}
    for split, scores in found.items()
  }
