"""Examples with image files in one folder: looked up inside it, decoded when needed."""

import hashlib
import itertools
import json
import os
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from PIL import Image

from afspl_jax.data import images
from afspl_jax.data.bad_records import BadRecord, MissingData
from afspl_jax.types import Example

_LOOKED_AT = 100  # file names that are tried to find the folder of the images


class ImageFolder:
  """The image files in a folder and its subfolders, and nothing outside it.

  Args:
    root: the folder.
  """

  def __init__(self, root: Path):
    self.root = root
    self._real = os.path.realpath(root)
    self._inside: dict[str, bool] = {}  # whether a folder is inside, with links resolved
    self._state: dict[str, tuple[int, int]] = {}

  def find(self, name: str, where: str, key: str = "image") -> str:
    """Looks a file up without reading it.

    Args:
      name: its path from the root, with "/".
      where: the record that names it, for messages.
      key: the key of the name in the record.

    Returns:
      The normalised name, spelled as in the folder, so that equal files have equal names.

    Raises:
      BadRecord: the name or a link leads out of the folder, or there is no such file.
    """
    plain = str(PurePosixPath(name))
    leaves = name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts
    if leaves or "\0" in name or PureWindowsPath(name).drive:
      raise BadRecord(
        where,
        f"{key} path",
        f'"{key}" must be a path inside {self.root}, with / between folders; got {name!r:.60}. Move'
        " the file there and name it from there.",
      )
    if plain not in self._state:
      plain = spelled_in(self._real, plain)
    if plain not in self._state:
      self._state[plain] = self._look(plain, where, key)
    return plain

  def state(self, name: str) -> tuple[int, int]:
    """Size in bytes and modification time in ns of a file that `find` has found."""
    return self._state[name]

  def load(self, name: str) -> Image.Image:
    """Decodes an image as RGB.

    Raises:
      UserError: it cannot be.
    """
    path = self.root / name
    return images.decode_image(path, str(path))

  def _look(self, name: str, where: str, key: str) -> tuple[int, int]:
    path = os.path.join(self._real, name)
    try:
      found = os.lstat(path)
      linked = stat.S_ISLNK(found.st_mode)
      target = os.path.realpath(path) if linked else path
      if not self._is_inside(os.path.dirname(target)):
        raise BadRecord(
          where,
          f"{key} path",
          f'"{key}" must be a path inside {self.root}; got {name!r:.60}, a link that leads out of'
          " it. Copy the file there.",
        )
      if linked:
        found = os.stat(target)
      if stat.S_ISREG(found.st_mode):
        return found.st_size, found.st_mtime_ns
      got = f"{name!r:.60}, which is not a file"
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
      absent = isinstance(error, FileNotFoundError)
      got = repr(name)[:60] + ("" if absent else f": {getattr(error, 'strerror', None) or error}")
    raise BadRecord(
      where,
      f"{key} missing",
      f'"{key}" must be the name of a file in {self.root}; got {got}. Put the image there, or'
      " remove the record.",
    )

  def _is_inside(self, folder: str) -> bool:
    if folder not in self._inside:
      real = os.path.realpath(folder)
      self._inside[folder] = os.path.commonpath([self._real, real]) == self._real
    return self._inside[folder]


class FileSource:
  """Some examples with their image files.

  Images are identified by their files' names, sizes and modification times, because reading 100,000
  of them takes minutes and every run checks whether they are the same. A copy of the data has other
  images, and needs new features, unless times were preserved (`cp -p`, `rsync -a`). A file replaced
  by another of the same size and time is not noticed.

  Args:
    examples: in their order.
    folder: holds the images.
    montages: the files of each image, which are joined to one picture; None where an image is a
      file and its key the file's name.
  """

  def __init__(
    self,
    examples: Sequence[Example],
    folder: ImageFolder,
    montages: Mapping[str, Sequence[str]] | None = None,
  ):
    self._examples = examples
    self._folder = folder
    self._images = list(dict.fromkeys(example.image for example in examples))
    self._files = None if montages is None else {key: montages[key] for key in self._images}
    self.images_fingerprint = _digest(self._states())
    self.fingerprint = _digest(itertools.chain(self._texts(), self._states()))

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, index: int) -> Example:
    return self._examples[index]

  def images(self) -> Sequence[str]:
    """Keys of the images."""
    return self._images

  def load_image(self, key: str) -> Image.Image:
    """Decodes one image as RGB.

    Raises:
      UserError: its file is not an image, or not whole.
    """
    if self._files is None:
      return self._folder.load(key)
    return images.montage([self._folder.load(name) for name in self._files[key]])

  def _texts(self) -> Iterator[Any]:
    for e in self._examples:
      yield [e.id, e.image, e.references, e.question, e.site, e.labels]

  def _states(self) -> Iterator[Any]:
    for key in self._images:
      names = [key] if self._files is None else self._files[key]
      yield [key, [(name, *self._folder.state(name)) for name in names]]


def _digest(values: Iterable[Any]) -> str:
  whole = hashlib.sha256(f"{images.VERSION}\n".encode())
  for value in values:
    whole.update(json.dumps(value).encode() + b"\n")
  return whole.hexdigest()[:16]


def sources_by_split(
  splits: Iterable[str],
  examples: Iterable[tuple[str, Example]],
  folder: ImageFolder,
  montages: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, FileSource]:
  """Makes a source for each split, from pairs of split and example."""
  parts: dict[str, list[Example]] = {split: [] for split in splits}
  for split, example in examples:
    if split in parts:
      parts[split].append(example)
  return {split: FileSource(part, folder, montages) for split, part in parts.items()}


def data_folder(folder: str) -> Path:
  """The folder of a data set: `data.dir`, or the working directory."""
  return Path(folder).expanduser()


def missing_data(problem: str, how: str) -> MissingData:
  """Makes the error of a data set that was not found.

  Args:
    problem: what was looked for, and where.
    how: where to get it, and where to put it.
  """
  return MissingData(
    f"data: {problem}.\n  {how}\n  If it is elsewhere, add --config.data.dir=FOLDER"
  )


def spelled_in(folder: str, name: str) -> str:
  """A path as a folder spells it: a letter with an accent may be one character there, or two.

  Args:
    folder: absolute path of the folder.
    name: path inside it, with "/".

  Returns:
    The path with the spelling of each part that exists, or `name` if there is no such file.
  """
  if name.isascii() or os.path.lexists(os.path.join(folder, name)):
    return name
  path = folder
  for part in name.split("/"):
    spellings = (unicodedata.normalize(form, part) for form in ("NFC", "NFD"))
    paths = [os.path.join(path, spelling) for spelling in (part, *spellings)]
    path = next(filter(os.path.lexists, paths), "")
    if not path:
      return name
  return os.path.relpath(path, folder)


def find_image_folder(
  root: Path, folders: Sequence[str], namings: Sequence[Sequence[str]], source: Path
) -> tuple[Path, int]:
  """Finds the folder that holds most of the images, among those that data sets use.

  Args:
    root: folder of the data set.
    folders: candidates, as paths from the root; "" for the root.
    namings: the images' file names, in each possible naming scheme.
    source: the file that names the images, for messages.

  Returns:
    The folder, and the index of the naming scheme.

  Raises:
    MissingData: no image is in any of the folders.
  """
  tried = [
    (sum(_is_there(root / folder, name) for name in names[:_LOOKED_AT]), folder, i)
    for folder in folders
    for i, names in enumerate(namings)
  ]
  found, folder, i = max(tried, key=lambda attempt: attempt[0])  # the first of equals
  if not found and any(namings):
    looked = ", ".join(dict.fromkeys(str(root / folder) for folder in folders))
    examples = " or ".join(repr(names[0])[:80] for names in namings if names)
    raise missing_data(
      f"no images of {source} in {looked}", f"Put them into one of these; the first is {examples}"
    )
  return root / folder, i


def _is_there(folder: Path, name: str) -> bool:
  return os.path.isfile(folder / spelled_in(str(folder), name))
