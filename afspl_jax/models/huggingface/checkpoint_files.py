"""The files of a Hugging Face checkpoint folder: config.json and weights, never pickle."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from afspl_jax.models.huggingface.checkpoint_problems import (
  FETCH,
  BackboneError,
  no_file,
  other_format,
  unreadable_file,
)
from afspl_jax.models.huggingface.weight_forms import (
  FORMS,
  PICKLES,
  TensorFile,
  WeightForm,
  find_form,
)
from afspl_jax.storage.json_text import parse_json

CONFIG = "config.json"


class Tensors(Mapping[str, np.ndarray]):
  """The tensors of a folder by key, read from their files when asked for.

  Attributes:
    lost: keys in the index that cannot be read.
  """

  def __init__(self) -> None:
    self.lost: set[str] = set()
    self._files: dict[str, tuple[str, TensorFile]] = {}

  def add(self, key: str, name: str, file: TensorFile) -> None:
    """Adds the key of a tensor in an opened file."""
    self._files[key] = (name, file)

  def __getitem__(self, key: str) -> np.ndarray:
    return self._files[key][1].tensor(key)

  def __iter__(self) -> Iterator[str]:
    return iter(self._files)

  def __len__(self) -> int:
    return len(self._files)

  def file(self, key: str) -> str:
    """Returns the name of the file that holds a tensor."""
    return self._files[key][0]

  def shape(self, key: str) -> tuple[int, ...]:
    """Returns the shape of a tensor without reading it."""
    return self._files[key][1].shape(key)

  def dtype(self, key: str) -> str:
    """Returns the storage type of a tensor as safetensors calls it, without reading it."""
    return self._files[key][1].dtype(key)


def read_config_file(folder: Path, problems: list[str]) -> dict[str, Any] | None:
  """Parses config.json.

  Args:
    folder: the checkpoint.
    problems: a text is appended if the file is missing or cannot be parsed.

  Returns:
    The parsed file, or None after a problem.
  """
  return _read_json(folder, CONFIG, problems)


def open_tensors(folder: Path, problems: list[str]) -> Tensors | None:
  """Opens the weights: one file, or shards with an index.

  Args:
    folder: the checkpoint.
    problems: a text is appended for each file that is missing or cannot be read.

  Returns:
    The tensors that can be read, or None if the list of tensors cannot be read.
  """
  form = find_form(folder)
  if form is None:
    problems.append(_no_weights(folder))
    return None
  tensors = Tensors()
  if (folder / form.single).is_file():
    file = _open(folder, form.single, form, problems)
    if file is None:
      return None
    for key in file.keys():  # noqa: SIM118 - no mapping
      tensors.add(key, form.single, file)
    return tensors
  places = _read_index(folder, form, problems)
  if places is None:
    return None
  opened = {name: _open(folder, name, form, problems) for name in sorted(set(places.values()))}
  held = {name: set(file.keys()) for name, file in opened.items() if file is not None}
  for stated, name in places.items():
    key, file = form.torch_key(stated), opened[name]
    if file is not None and key in held[name]:
      tensors.add(key, name, file)
      continue
    tensors.lost.add(key)
    if file is not None:
      problems.append(
        f'{form.index_file}: expected "{stated}" in {name}; got no such tensor there. {FETCH}'
      )
  return tensors


def weight_files(folder: Path) -> list[Path]:
  """Lists the files that hold a checkpoint's weights, the index included.

  Raises:
    BackboneError: there are none, or the index or a shard is missing or broken.
  """
  form = find_form(folder)
  if form is None:
    raise BackboneError(folder, [_no_weights(folder)])
  if (folder / form.single).is_file():
    return [folder / form.single]
  problems: list[str] = []
  places = _read_index(folder, form, problems) or {}
  shards = sorted(set(places.values()))
  problems.extend(no_file(name) for name in shards if not _is_file(folder / name))
  if problems:
    raise BackboneError(folder, problems)
  return [folder / form.index_file, *(folder / name for name in shards)]


def _is_file(path: Path) -> bool:
  return os.path.isfile(path)  # pathlib's raises OSError at a name that is too long


def _no_weights(folder: Path) -> str:
  if not folder.is_dir():
    return "expected a folder here; got none. Correct the path, or download the checkpoint."
  wanted = ", ".join(name for form in FORMS for name in (form.single, form.index_file) if name)
  pickles = [name for name in PICKLES if (folder / name).is_file()]
  if pickles:
    return (
      f"expected one of {wanted}; got only {pickles[0]}, a pickle, which may run code when"
      " read and is never opened. Convert it to safetensors where PyTorch is installed"
      " (`from_pretrained(...).save_pretrained(...)`), or download the safetensors version."
    )
  return f"expected one of {wanted}; got none. {FETCH}"


def _open(folder: Path, name: str, form: WeightForm, problems: list[str]) -> TensorFile | None:
  if not _is_file(folder / name):
    problems.append(no_file(name))
    return None
  try:
    return form.open(folder / name)
  except (ValueError, OSError) as error:
    problems.append(unreadable_file(folder / name, form.name, error))
    return None


def _read_json(folder: Path, name: str, problems: list[str]) -> dict[str, Any] | None:
  if not (folder / name).is_file():
    problems.append(no_file(name))
    return None
  try:
    parsed = parse_json((folder / name).read_bytes())
  except (ValueError, OSError) as error:
    if other := other_format(folder / name, "JSON"):
      problems.append(other)
      return None
    problems.append(f"{name}: expected JSON; got something else ({error}). {FETCH}")
    return None
  if not isinstance(parsed, dict):
    problems.append(f"{name}: expected a JSON object; got {type(parsed).__name__}. {FETCH}")
    return None
  return parsed


def _read_index(folder: Path, form: WeightForm, problems: list[str]) -> dict[str, str] | None:
  parsed = _read_json(folder, form.index_file, problems)
  if parsed is None:
    return None
  places = parsed.get("weight_map")
  names = list(places.values()) if isinstance(places, dict) else [None]
  # A shard is a file beside the index; a path could point anywhere.
  if not all(isinstance(name, str) and Path(name).name == name for name in names):
    problems.append(
      f'{form.index_file}: expected a "weight_map" from keys to names of files in this folder; got'
      f" something else. {FETCH}"
    )
    return None
  return places
