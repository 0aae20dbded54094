"""The files of a Hugging Face checkpoint folder: config.json and safetensors, never pickle."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from afspl_jax.errors import UserError
from afspl_jax.storage.file_format import HEAD, file_format
from afspl_jax.storage.json_text import parse_json

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_FETCH = "Download the complete checkpoint again."


_SHOWN, _LONGEST = 50, 1000  # problems in a message, and characters of one


class BackboneError(UserError):
  """A checkpoint folder has problems; the message lists all of them.

  Attributes:
    problems: one text for each: what was expected, what was found and what to do.
  """

  def __init__(self, folder: Path, problems: list[str]):
    self.problems = tuple(problems)
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    shown = [text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..." for text in problems]
    if len(shown) > _SHOWN:
      shown[_SHOWN:] = [f"and {len(shown) - _SHOWN} more"]
    super().__init__("\n- ".join([f"{folder}: {count} in this checkpoint", *shown]))


class Tensors(Mapping[str, np.ndarray]):
  """The tensors of a folder by key, read from their files when asked for.

  Attributes:
    lost: keys in the index that cannot be read.
  """

  def __init__(self) -> None:
    self.lost: set[str] = set()
    self._files: dict[str, tuple[str, Any]] = {}

  def add(self, key: str, name: str, file: Any) -> None:
    """Adds the key of a tensor in an opened file."""
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
  tensors = Tensors()
  if (folder / WEIGHTS).is_file():
    file = _open(folder, WEIGHTS, problems)
    if file is None:
      return None
    for key in file.keys():  # noqa: SIM118 - a safe_open is no mapping
      tensors.add(key, WEIGHTS, file)
    return tensors
  if (folder / INDEX).is_file():
    places = _read_index(folder, problems)
    if places is None:
      return None
    opened = {name: _open(folder, name, problems) for name in sorted(set(places.values()))}
    held = {name: set(file.keys()) for name, file in opened.items() if file is not None}
    for key, name in places.items():
      if name in held and key in held[name]:
        tensors.add(key, name, opened[name])
        continue
      tensors.lost.add(key)
      if name in held:
        problems.append(f'{INDEX}: expected "{key}" in {name}; got no such tensor there. {_FETCH}')
    return tensors
  problems.append(_no_weights(folder))
  return None


def weight_files(folder: Path) -> list[Path]:
  """Lists the files that hold a checkpoint's weights, the index included.

  Raises:
    BackboneError: there are none, or the index or a shard is missing or broken.
  """
  if (folder / WEIGHTS).is_file():
    return [folder / WEIGHTS]
  problems: list[str] = []
  if not (folder / INDEX).is_file():
    raise BackboneError(folder, [_no_weights(folder)])
  places = _read_index(folder, problems) or {}
  shards = sorted(set(places.values()))
  problems.extend(_no_file(name) for name in shards if not _is_file(folder / name))
  if problems:
    raise BackboneError(folder, problems)
  return [folder / INDEX, *(folder / name for name in shards)]


# A prompter that was trained with other tokens or pixels does not fit, so the files that define
# these count too: all that transformers' tokenizers and our image processor read.
_PROCESSING = (
  "preprocessor_config.json",
  "tokenizer*.json",  # tokenizer_config.json may name tokenizer.4.0.0.json and the like
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.*",
  "merges.txt",
  "*.model",  # of sentencepiece
)
_EARLIER = ("preprocessor_config.json", "tokenizer.json", "vocab.json", "merges.txt")


def fingerprint(folder: str | Path) -> str:
  """Identifies a checkpoint by its content, so that two sites can check that they have the same.

  Args:
    folder: the checkpoint.

  Returns:
    The first 16 hexadecimal digits of the SHA-256 of config.json, the weight files, and the files
    that define tokens and pixels.

  Raises:
    BackboneError: one of the files is missing.
  """
  folder = Path(folder)
  named = (folder.glob(pattern) for pattern in _PROCESSING)
  return _hash(folder, sorted({path for found in named for path in found if path.is_file()}))


def earlier_fingerprint(folder: str | Path) -> str:
  """The fingerprint in files of earlier versions, which covered fewer files.

  Args:
    folder: the checkpoint.

  Raises:
    BackboneError: one of the files is missing.
  """
  folder = Path(folder)
  return _hash(folder, [folder / name for name in _EARLIER if (folder / name).is_file()])


def _hash(folder: Path, processing: list[Path]) -> str:
  if not (folder / CONFIG).is_file():
    raise BackboneError(folder, [_no_file(CONFIG)])
  digest = hashlib.sha256()
  for path in [folder / CONFIG, *weight_files(folder), *processing]:
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


def _other_format(file: Path, wanted: str) -> str:
  """The problem of a file that has another format than its name says; "" if this is not known."""
  with file.open("rb") as opened:
    known = file_format(opened.read(HEAD))
  if known is None or known.name == "a JSON file":  # damaged, or a header of safetensors
    return ""
  do = _FETCH if known.placeholder else "Take the file of the checkpoint, or convert it."
  return f"{file.name}: expected {wanted}; got {known.name}. {do}"


def _open(folder: Path, name: str, problems: list[str]) -> Any:
  if not _is_file(folder / name):
    problems.append(_no_file(name))
    return None
  try:
    return safe_open(folder / name, framework="np")
  except (SafetensorError, OSError) as error:
    if other := _other_format(folder / name, "a safetensors file"):
      problems.append(other)
      return None
    size = (folder / name).stat().st_size
    problems.append(
      f"{name}: expected a complete safetensors file; got {size} bytes that cannot be read"
      f" ({error}). {_FETCH}"
    )
    return None


def _read_json(folder: Path, name: str, problems: list[str]) -> dict[str, Any] | None:
  if not (folder / name).is_file():
    problems.append(_no_file(name))
    return None
  try:
    parsed = parse_json((folder / name).read_bytes())
  except (ValueError, OSError) as error:
    if other := _other_format(folder / name, "JSON"):
      problems.append(other)
      return None
    problems.append(f"{name}: expected JSON; got something else ({error}). {_FETCH}")
    return None
  if not isinstance(parsed, dict):
    problems.append(f"{name}: expected a JSON object; got {type(parsed).__name__}. {_FETCH}")
    return None
  return parsed


def _read_index(folder: Path, problems: list[str]) -> dict[str, str] | None:
  parsed = _read_json(folder, INDEX, problems)
  if parsed is None:
    return None
  places = parsed.get("weight_map")
  names = list(places.values()) if isinstance(places, dict) else [None]
  # A shard is a file beside the index; a path could point anywhere.
  if not all(isinstance(name, str) and Path(name).name == name for name in names):
    problems.append(
      f'{INDEX}: expected a "weight_map" from keys to names of files in this folder; got'
      f" something else. {_FETCH}"
    )
    return None
  return places
