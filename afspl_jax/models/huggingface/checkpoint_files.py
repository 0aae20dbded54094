"""The files of a Hugging Face checkpoint folder: config.json and safetensors, never pickle."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from afspl_jax.errors import UserError
from afspl_jax.storage.json_text import parse

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_FETCH = "Download the checkpoint again, whole."


_SHOWN, _LONGEST = 50, 1000  # faults in a message, and characters of one


class CheckpointError(UserError):
  """Says what is wrong with a checkpoint folder, all at once.

  Attributes:
    faults: one text for each fault: what was expected, what was found and what to do.
  """

  def __init__(self, folder: Path, faults: list[str]):
    self.faults = tuple(faults)
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    shown = [fault if len(fault) <= _LONGEST else f"{fault[:_LONGEST]} ..." for fault in faults]
    if len(shown) > _SHOWN:
      shown[_SHOWN:] = [f"and {len(shown) - _SHOWN} more"]
    super().__init__("\n- ".join([f"{folder}: {count} in this checkpoint", *shown]))


class Tensors(Mapping[str, np.ndarray]):
  """The tensors of a folder by key, read from their files when asked for.

  Attributes:
    lost: keys that the index names, but that cannot be read.
  """

  def __init__(self) -> None:
    self.lost: set[str] = set()
    self._files: dict[str, tuple[str, Any]] = {}

  def add(self, key: str, name: str, file: Any) -> None:
    """Notes that `key` is found in the opened file of this name."""
    self._files[key] = (name, file)

  def __getitem__(self, key: str) -> np.ndarray:
    return self._files[key][1].get_tensor(key)

  def __iter__(self) -> Iterator[str]:
    return iter(self._files)

  def __len__(self) -> int:
    return len(self._files)

  def file(self, key: str) -> str:
    """Returns the name of the file that holds a tensor."""
    return self._files[key][0]

  def shape(self, key: str) -> tuple[int, ...]:
    """Returns the shape of a tensor without reading it."""
    return tuple(self._files[key][1].get_slice(key).get_shape())

  def dtype(self, key: str) -> str:
    """Returns the storage type of a tensor as safetensors calls it, without reading it."""
    return self._files[key][1].get_slice(key).get_dtype()


def read_config(folder: Path, faults: list[str]) -> dict[str, Any] | None:
  """Parses config.json.

  Args:
    folder: the checkpoint.
    faults: gains a text if the file is missing or cannot be parsed.

  Returns:
    The parsed file, or None after a fault.
  """
  return _read_json(folder, CONFIG, faults)


def open_tensors(folder: Path, faults: list[str]) -> Tensors | None:
  """Opens the weights, be they one file or shards with an index.

  Args:
    folder: the checkpoint.
    faults: gains a text for each file that is missing or cannot be read.

  Returns:
    The tensors that can be read, or None if it is not even known which there should be.
  """
  tensors = Tensors()
  if (folder / WEIGHTS).is_file():
    file = _open(folder, WEIGHTS, faults)
    if file is None:
      return None
    for key in file.keys():  # noqa: SIM118 - a safe_open is no mapping
      tensors.add(key, WEIGHTS, file)
    return tensors
  if (folder / INDEX).is_file():
    places = _read_index(folder, faults)
    if places is None:
      return None
    opened = {name: _open(folder, name, faults) for name in sorted(set(places.values()))}
    held = {name: set(file.keys()) for name, file in opened.items() if file is not None}
    for key, name in places.items():
      if name in held and key in held[name]:
        tensors.add(key, name, opened[name])
        continue
      tensors.lost.add(key)
      if name in held:
        faults.append(f'{INDEX}: expected "{key}" in {name}; got no such tensor there. {_FETCH}')
    return tensors
  faults.append(_no_weights(folder))
  return None


def weight_files(folder: Path) -> list[Path]:
  """Lists the files that hold a checkpoint's weights, the index included.

  Raises:
    CheckpointError: if there are none, or the index or a shard is missing or broken.
  """
  if (folder / WEIGHTS).is_file():
    return [folder / WEIGHTS]
  faults: list[str] = []
  if not (folder / INDEX).is_file():
    raise CheckpointError(folder, [_no_weights(folder)])
  places = _read_index(folder, faults) or {}
  shards = sorted(set(places.values()))
  faults.extend(_no_file(name) for name in shards if not _is_file(folder / name))
  if faults:
    raise CheckpointError(folder, faults)
  return [folder / INDEX, *(folder / name for name in shards)]


# Other tokens or pixels are another model to whoever trains on its outputs.
_PROCESSING = ("preprocessor_config.json", "tokenizer.json", "vocab.json", "merges.txt")


def fingerprint(folder: str | Path) -> str:
  """Identifies a checkpoint by its content, so that two sites can tell whether they share it.

  Args:
    folder: the checkpoint.

  Returns:
    The first 16 hexadecimal digits of the SHA-256 over config.json, the weight files, and the
    files that prescribe tokens and pixels.

  Raises:
    CheckpointError: if one of the files is missing.
  """
  folder = Path(folder)
  if not (folder / CONFIG).is_file():
    raise CheckpointError(folder, [_no_file(CONFIG)])
  digest = hashlib.sha256()
  prescribed = [folder / name for name in _PROCESSING if (folder / name).is_file()]
  for path in [folder / CONFIG, *weight_files(folder), *prescribed]:
    digest.update(f"{path.name} {path.stat().st_size}\n".encode())
    with path.open("rb") as file:
      while block := file.read(1 << 20):
        digest.update(block)
  return digest.hexdigest()[:16]


def _is_file(path: Path) -> bool:
  return os.path.isfile(path)  # pathlib's raises OSError at a name that is too long


def _no_file(name: str) -> str:
  return f"{name}: expected this file; got none. {_FETCH}"


def _no_weights(folder: Path) -> str:
  if not folder.is_dir():
    return "expected a folder here; got none. Correct the path, or download the checkpoint."
  pickles = [name for name in _PICKLES if (folder / name).is_file()]
  if pickles:
    return (
      f"expected {WEIGHTS} or {INDEX}; got only {pickles[0]}, a pickle, which may run code when"
      " read and is never opened. Convert it to safetensors where PyTorch is installed"
      " (`from_pretrained(...).save_pretrained(...)`), or download the safetensors version."
    )
  return f"expected {WEIGHTS} or {INDEX}; got neither. {_FETCH}"


def _open(folder: Path, name: str, faults: list[str]) -> Any:
  if not _is_file(folder / name):
    faults.append(_no_file(name))
    return None
  try:
    return safe_open(folder / name, framework="np")
  except (SafetensorError, OSError) as error:
    size = (folder / name).stat().st_size
    faults.append(
      f"{name}: expected a whole safetensors file; got {size} bytes that cannot be read"
      f" ({error}). {_FETCH}"
    )
    return None


def _read_json(folder: Path, name: str, faults: list[str]) -> dict[str, Any] | None:
  if not (folder / name).is_file():
    faults.append(_no_file(name))
    return None
  try:
    parsed = parse((folder / name).read_bytes())
  except (ValueError, OSError) as error:
    faults.append(f"{name}: expected JSON; got something else ({error}). {_FETCH}")
    return None
  if not isinstance(parsed, dict):
    faults.append(f"{name}: expected a JSON object; got {type(parsed).__name__}. {_FETCH}")
    return None
  return parsed


def _read_index(folder: Path, faults: list[str]) -> dict[str, str] | None:
  parsed = _read_json(folder, INDEX, faults)
  if parsed is None:
    return None
  places = parsed.get("weight_map")
  names = list(places.values()) if isinstance(places, dict) else [None]
  # A shard is a file beside the index; a path could point anywhere.
  if not all(isinstance(name, str) and Path(name).name == name for name in names):
    faults.append(
      f'{INDEX}: expected a "weight_map" from keys to names of files in this folder; got'
      f" something else. {_FETCH}"
    )
    return None
  return places
