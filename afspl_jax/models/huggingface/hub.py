"""Fetches checkpoints from the Hugging Face hub; no other module talks to it.

Only files that define a model are fetched: settings, tokenizers, and weights in a form that is read
here. Never a pickle, and never code.
"""

import fnmatch
import functools
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from afspl_jax.errors import UserError
from afspl_jax.models.huggingface.checkpoint_files import CONFIG, weight_files
from afspl_jax.models.huggingface.checkpoint_problems import BackboneError
from afspl_jax.models.huggingface.fingerprint import PROCESSING
from afspl_jax.models.huggingface.weight_forms import FORMS

_TRUE = ("1", "ON", "YES", "TRUE")  # as huggingface_hub reads its variables
_SHARDS = "-?????-of-?????"
_MOST_FILES = 10_000


class Unreachable(UserError):
  """The hub was not asked, or did not answer; the message says why."""


class HubError(UserError):
  """The hub answered, and has no such checkpoint, or sent other bytes than it stated."""


class HubFile(NamedTuple):
  """A file of a repository.

  Attributes:
    name: without a folder.
    size: in bytes.
    algorithm: "sha256", or "git" for Git's own hash of a blob.
    digest: in hexadecimal.
  """

  name: str
  size: int
  algorithm: str
  digest: str


def is_offline() -> bool:
  """Whether the environment forbids to ask the hub, with HF_HUB_OFFLINE."""
  from huggingface_hub import constants

  return constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE


def cache() -> Path:
  """The folder of Hugging Face's cache."""
  from huggingface_hub import constants

  return Path(constants.HF_HUB_CACHE)


def cached_folder(name: str) -> Path | None:
  """The folder of a repository in Hugging Face's cache, if its config.json is there.

  Args:
    name: such as "google/flan-t5-base".
  """
  from huggingface_hub import try_to_load_from_cache
  from huggingface_hub.errors import HFValidationError

  try:
    config = try_to_load_from_cache(name, CONFIG, cache())
  except HFValidationError:  # no name of a repository
    return None
  return Path(config).parent if isinstance(config, str) else None


def has_weights(folder: Path) -> bool:
  """Whether all weight files are in a folder. They are fetched last, and so then it is complete."""
  try:
    return bool(weight_files(folder))
  except BackboneError:
    return False


def fetch_checkpoint(name: str) -> Path:
  """Fetches a checkpoint, or the rest of it, into Hugging Face's cache.

  Args:
    name: of a repository, such as "google/flan-t5-base".

  Returns:
    Its folder.

  Raises:
    Unreachable: the hub was not asked, or did not answer.
    HubError: there is no such repository, or none that can be read; or a file is damaged.
  """
  return _fetch(name, lambda files: _checkpoint_files(name, files))


def fetch_file(name: str, file: str) -> Path:
  """Fetches one file of a repository, as `fetch_checkpoint` does, unless the cache has it."""
  from huggingface_hub import try_to_load_from_cache

  if isinstance(cached := try_to_load_from_cache(name, file, cache()), str):
    return Path(cached)

  def choose(files: Sequence[HubFile]) -> list[HubFile]:
    found = [one for one in files if one.name == file]
    if not found:
      raise HubError(f"{name}: expected {file}; got {_listed(files)}. Give another repository")
    return found

  return _fetch(name, choose) / file


def _fetch(name: str, choose: Callable[[Sequence[HubFile]], list[HubFile]]) -> Path:
  """Fetches the chosen files, each unless the cache has it; returns the folder of the last."""
  from huggingface_hub import hf_hub_download, try_to_load_from_cache

  if is_offline():
    raise Unreachable("HF_HUB_OFFLINE or --offline forbids to ask the hub")
  commit, files = _ask(name, lambda: _list_files(name))
  wanted, place = choose(files), cache()
  missing = [
    file for file in wanted if not isinstance(try_to_load_from_cache(name, file.name, place), str)
  ]
  _announce(name, missing)
  folder = place
  for file in wanted:
    download = functools.partial(hf_hub_download, name, file.name, cache_dir=place)
    path = Path(_ask(name, download))
    if path.parent.name != commit:
      raise HubError(f"{name}: expected commit {commit}; it changed meanwhile. Start again")
    if file in missing:
      _check(path, file)
    folder = path.parent
  return folder


def _ask(name: str, question: Callable[[], Any]) -> Any:
  """Asks the hub, and turns its errors into ours."""
  from huggingface_hub import errors

  # Of httpx, or of httpx2 since huggingface_hub 2.
  transport: Any = errors.HfHubHTTPError.__mro__[1]
  try:
    return question()
  except errors.GatedRepoError as error:
    raise HubError(
      f"{name}: expected access to this repository; got: its owner grants it. Ask for it on its"
      " page, then `hf auth login`"
    ) from error
  except errors.RepositoryNotFoundError as error:
    raise HubError(
      f"{name}: expected a repository of the hub; got none that you can read. Correct the name, or"
      " `hf auth login`"
    ) from error
  except errors.HFValidationError as error:
    raise Unreachable("it is no name of a repository") from error
  except (transport, OSError) as error:  # also HfHubHTTPError and LocalEntryNotFoundError
    if getattr(error, "errno", None) is not None and not isinstance(error, ConnectionError):
      raise  # of the disk
    reason = str(error).strip().splitlines() or [type(error).__name__]
    raise Unreachable(f"the hub did not answer ({reason[0][:200]})") from error


def _list_files(name: str) -> tuple[str, list[HubFile]]:
  """The commit of a repository, and the files beside its config.json."""
  from huggingface_hub import HfApi

  info = HfApi().model_info(name, files_metadata=True, timeout=10)
  files = []
  for sibling in (info.siblings or [])[:_MOST_FILES]:
    if "/" in sibling.rfilename or type(sibling.size) is not int:
      continue
    lfs = sibling.lfs
    digest = ("sha256", lfs.sha256) if lfs else ("git", sibling.blob_id or "")
    files.append(HubFile(sibling.rfilename, sibling.size, *digest))
  return info.sha or "", files


def _checkpoint_files(name: str, files: Sequence[HubFile]) -> list[HubFile]:
  """The files of one checkpoint among all, its weights last."""
  small = [
    file
    for file in files
    if file.name == CONFIG or any(fnmatch.fnmatchcase(file.name, one) for one in PROCESSING)
  ]
  names = {file.name for file in files}
  for form in FORMS:
    stem, _, ending = form.single.rpartition(".")
    if form.single in names:
      patterns = [form.single]
    elif form.index_file in names:
      patterns = [form.index_file, f"{stem}{_SHARDS}.{ending}"]
    else:
      continue
    weights = [file for file in files if any(fnmatch.fnmatchcase(file.name, p) for p in patterns)]
    return small + sorted(weights, key=lambda file: file.name == form.index_file, reverse=True)
  wanted = ", ".join(form.single for form in FORMS)
  raise HubError(
    f"{name}: expected one of {wanted}; got {_listed(files)}. A pickle is never fetched: take a"
    " repository with safetensors, or convert it where PyTorch is installed"
  )


def _announce(name: str, missing: Sequence[HubFile]) -> None:
  """Says what will be fetched, and checks that there is room for it."""
  if not missing:
    return
  size, place = sum(file.size for file in missing), cache()
  free = shutil.disk_usage(next(at for at in (place, *place.parents) if at.exists())).free
  what = ", ".join(f"{file.name} ({_bytes(file.size)})" for file in missing)
  if size > free:
    raise HubError(
      f"{name}: expected {_bytes(size)} of space in {place}; got {_bytes(free)}. Free some, or set"
      " HF_HUB_CACHE to another folder"
    )
  print(f"fetching {name}, {_bytes(size)}, into {place}: {what}", file=sys.stderr, flush=True)


def _check(path: Path, file: HubFile) -> None:
  """Compares a file with the hash that the hub states, and deletes one that is damaged."""
  size = path.stat().st_size
  if file.algorithm == "sha256":
    digest = hashlib.sha256()
  else:
    digest = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
  with path.open("rb") as opened:
    while block := opened.read(1 << 20):
      digest.update(block)
  if (size, digest.hexdigest()) != (file.size, file.digest):
    path.resolve().unlink()
    path.unlink(missing_ok=True)
    raise HubError(
      f"{file.name}: expected {file.size} bytes with {file.algorithm} hash {file.digest}; got"
      f" {size} bytes with {digest.hexdigest()}. The file was deleted: start again"
    )


def _bytes(size: int) -> str:
  return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"


def _listed(files: Sequence[HubFile]) -> str:
  return ", ".join(sorted(file.name for file in files)[:20]) or "no files"
