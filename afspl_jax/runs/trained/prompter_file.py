"""A trained prompter as one safetensors file, for use elsewhere with the same two backbones.

The file is untrusted: its contents are checked against its own settings before they are used, and
nothing in it is executed.
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
from afspl_jax.models.prompter.local import join_local, split_like
from afspl_jax.runs.validate import validate
from afspl_jax.storage.atomic_files import replaced_file
from afspl_jax.storage.json_text import parse_json
from afspl_jax.storage.pytrees import named_leaves, zeros_like
from afspl_jax.storage.versions import installed_version
from afspl_jax.types import Params

_FORMAT = 1
_KEY = "afspl_jax"  # of the file's metadata; the value is JSON
_LONGEST = 1 << 20  # characters of this JSON
# Upper bounds of settings that allocate memory, by field or by group; real values are far below.
# Other settings, such as numbers of examples, allocate nothing where a file is used.
_LARGEST = {
  "prompter": 1 << 16,
  "data.instruction_length": 1 << 12,
  "eval.max_tokens": 1 << 12,
  "eval.min_tokens": 1 << 12,
  "eval.beams": 1 << 12,
  "eval.no_repeat_ngram": 1 << 12,
}


@dataclasses.dataclass(frozen=True)
class PrompterInfo:
  """The description of a prompter in its file."""

  config: Experiment  # without paths of the machine that it was trained on
  backbones: dict[str, str]  # hashes of "clip" and "t5"
  round: int  # the round after which the leaves were saved
  site: str = ""  # the site whose local prompt is in the file; "": only the global model
  scores: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)  # by split


def write_prompter(file: Path, info: PrompterInfo, shared: Params, local: Params) -> PrompterInfo:
  """Writes a prompter file atomically.

  Args:
    file: its name ends with .safetensors.
    info: the description of the prompter.
    shared: the shared leaves (NumPy).
    local: the local leaves of `info.site`, or {}; they are private to that site.

  Returns:
    The description in the file: without the paths of this machine.

  Raises:
    UserError: the name has another ending, or the file cannot be written.
  """
  if file.suffix != ".safetensors":
    raise UserError(f"{file}: expected a name that ends with .safetensors")
  info = dataclasses.replace(info, config=_without_paths(info.config))
  metadata = {
    "format": _FORMAT,
    "version": installed_version("afspl_jax"),
    **dataclasses.asdict(info),
    "config": to_dict(info.config),
  }
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    leaves, text = named_leaves(join_local(shared, local)), json.dumps(metadata, sort_keys=True)
    with replaced_file(file) as scratch:
      save_file(leaves, scratch, metadata={_KEY: text})
      if not info.site:
        scratch.chmod(0o644)  # safetensors makes the file readable only by its owner
  except (OSError, SafetensorError) as error:
    raise UserError(f"{file}: expected to write a prompter; got: {error}") from error
  return info


def read_prompter_info(file: Path) -> PrompterInfo:
  """Reads the description of a prompter from its file.

  Raises:
    UserError: it is not a prompter file, or its settings are not valid.
  """
  try:
    with safe_open(file, framework="np") as opened:
      text = (opened.metadata() or {}).get(_KEY, "")
  except (OSError, SafetensorError) as error:
    raise UserError(f"{file}: expected a file of `afspl export`; got: {error}") from error
  try:
    if not 0 < len(text) <= _LONGEST:
      raise ValueError(f"{len(text)} characters of metadata")
    metadata = parse_json(text)
    if metadata["format"] != _FORMAT:
      raise ValueError(
        f"format {metadata['format']!r} of afspl_jax {metadata.get('version')!r};"
        f" this version reads format {_FORMAT}"
      )
    info = PrompterInfo(
      config=from_dict(metadata["config"]),
      backbones={kind: _name(metadata["backbones"][kind]) for kind in ("clip", "t5")},
      round=int(metadata["round"]),
      site=_name(metadata["site"]),
      scores=_scores(metadata["scores"]),
    )
    _require_safe(info.config)
  except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
    raise UserError(
      f"{file}: expected a file of `afspl export`; got {type(error).__name__}: {str(error)[:300]}"
    ) from error
  return info


def read_prompter_leaves(
  file: Path, info: PrompterInfo, shared: Params, local: Params
) -> tuple[Params, Params]:
  """Reads the leaves of a prompter file.

  Args:
    file: the file.
    info: the result of `read_prompter_info`.
    shared: shapes of the shared leaves.
    local: shapes of the local leaves; they are read if the file has a site.

  Returns:
    Shared and local leaves (NumPy); local leaves that are not in the file are zeros.

  Raises:
    UserError: names, shapes or types do not match the settings, or a value is not finite.
  """
  wanted = join_local(shared, local if info.site else {})
  expected = named_leaves(wanted)
  form = {name: f"F32{list(leaf.shape)}" for name, leaf in expected.items()}
  try:
    with safe_open(file, framework="np") as opened:
      slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
      found = {name: f"{part.get_dtype()}{list(part.get_shape())}" for name, part in slices.items()}
      for name in sorted(found.keys() | form.keys()):
        if found.get(name) != form.get(name):
          raise ValueError(
            f"{name[:100]} is {found.get(name, 'missing')}, expected"
            f" {form.get(name, 'no such leaf')}"
          )
      leaves = [opened.get_tensor(name) for name in expected]
    for name, leaf in zip(expected, leaves, strict=True):
      if not np.isfinite(leaf).all():
        raise ValueError(f"{name} has values that are not finite")
  except (OSError, SafetensorError, ValueError) as error:
    raise UserError(
      f"{file}: expected the {len(form)} leaves of its settings; got: {error}"
    ) from error
  tree = jax.tree.unflatten(jax.tree.structure(wanted), leaves)
  found_shared, found_local = split_like(tree, shared)
  return found_shared, found_local or zeros_like(local)


def _without_paths(config: Experiment) -> Experiment:
  """The settings without the paths of this machine: only the last part of a folder stays."""
  changes = {"data.dir": ""}
  for kind in ("clip", "t5"):
    folder = Path(getattr(config.backbone, kind)).expanduser()
    if folder.is_absolute() or folder.exists():
      changes[f"backbone.{kind}"] = folder.resolve().name
  return changed(config, changes)


def _require_safe(config: Experiment) -> None:
  """Rejects settings that are not valid, or that would fill the memory."""
  validate(config)
  for name, value in known_fields(config):
    largest = _LARGEST.get(name, _LARGEST.get(name.split(".")[0], math.inf))
    if isinstance(value, int) and value > largest:
      raise ValueError(f"{name} of {value}, more than {largest}")
  _, _, tokens = config.prompter.mapper.partition(":")  # of "pooled:N"
  if tokens.isdigit() and int(tokens) > _LARGEST["prompter"]:
    raise ValueError(f"prompter.mapper of {tokens} tokens, more than {_LARGEST['prompter']}")
  for kind in ("clip", "t5"):
    path = Path(_name(getattr(config.backbone, kind)))  # shown if the backbone is missing
    if path.is_absolute() or ".." in path.parts or "~" in str(path):
      raise ValueError(f"backbone.{kind} of {str(path)[:100]!r}, a path of another machine")


def _name(value: Any) -> str:
  if not isinstance(value, str) or len(value) > 200 or not (value.isprintable()):
    raise ValueError(f"{str(value)[:100]!r}, which is not a name")
  return value


def _scores(found: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
  return {
    _name(split): {_name(name): float(value) for name, value in scores.items()}
    for split, scores in found.items()
  }
