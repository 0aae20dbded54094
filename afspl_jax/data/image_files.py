"""Examples with image files below one folder: found, kept inside it, decoded when asked for."""

import hashlib
import itertools
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from PIL import Image

from afspl_jax.data import images
from afspl_jax.data.bad_records import Malformed, MissingData
from afspl_jax.types import Example

_LOOKED_AT = 100  # names by which the folder of the images is found


class ImageFolder:
  """The image files below a folder, and nothing outside it.

  Args:
    root: the folder.
  """

  def __init__(self, root: Path):
    self.root = root
    self._real = os.path.realpath(root)
    self._inside: dict[str, bool] = {}  # whether a folder is, behind its links
    self._state: dict[str, tuple[int, int]] = {}

  def find(self, name: str, where: str, key: str = "image") -> str:
    """Looks a file up; reads none of it.

    Args:
      name: its path from the root, with "/".
      where: the record that names it, for messages.
      key: of the record.

    Returns:
      The name in its plainest form, so that equal files have equal names.

    Raises:
      Malformed: the name leads out of the folder, by itself or by a link, or to no file.
    """
    plain = str(PurePosixPath(name))
    leaves = name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts
    if leaves or "\0" in name or PureWindowsPath(name).drive:
      raise Malformed(
        where,
        f"{key} path",
        f'"{key}" must be a path inside {self.root}, with / between folders; got {name!r:.60}. Move'
        " the file there and name it from there.",
      )
    if plain not in self._state:
      self._state[plain] = self._look(plain, where, key)
    return plain

  def state(self, name: str) -> tuple[int, int]:
    """Size in bytes and time of the last change in ns of a file that was found."""
    return self._state[name]

  def load(self, name: str) -> Image.Image:
    """Decodes an image as RGB.

    Raises:
      UserError: it cannot be.
    """
    path = self.root / name
    return images.decode(path, str(path))

  def _look(self, name: str, where: str, key: str) -> tuple[int, int]:
    path = os.path.join(self._real, name)
    try:
      found = os.lstat(path)
      linked = stat.S_ISLNK(found.st_mode)
      target = os.path.realpath(path) if linked else path
      if not self._is_inside(os.path.dirname(target)):
        raise Malformed(
          where,
          f"{key} path",
          f'"{key}" must be a path inside {self.root}; got {name!r:.60}, which a link leads out of'
          " it. Copy what it leads to.",
        )
      if linked:
        found = os.stat(target)
      if stat.S_ISREG(found.st_mode):
        return found.st_size, found.st_mtime_ns
      got = f"{name!r:.60}, which is no file"
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
      absent = isinstance(error, FileNotFoundError)
      got = repr(name)[:60] + ("" if absent else f": {getattr(error, 'strerror', None) or error}")
    raise Malformed(
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

  The images are known by their files' names, sizes and times of change: reading 100,000 of them
  takes minutes, and a run begins by asking whether they are the same. Those of a copy of the data
  are others unless times were kept (`cp -p`, `rsync -a`); then their features are made again. What
  cannot be seen is a file replaced by one of the same size and time.

  Args:
    examples: in their order.
    folder: holds the images.
    pictures: the files of each image, of which one picture is made; None where an image is a file
      and its key the file's name.
  """

  def __init__(
    self,
    examples: Sequence[Example],
    folder: ImageFolder,
    pictures: Mapping[str, Sequence[str]] | None = None,
  ):
    self._examples = examples
    self._folder = folder
    self._images = list(dict.fromkeys(example.image for example in examples))
    self._files = None if pictures is None else {key: pictures[key] for key in self._images}
    self.pictures = _digest(self._states())
    self.fingerprint = _digest(itertools.chain(self._said(), self._states()))

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

  def _said(self) -> Iterator[Any]:
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


def by_split(
  splits: Iterable[str],
  examples: Iterable[tuple[str, Example]],
  folder: ImageFolder,
  pictures: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, FileSource]:
  """A source of each split, of examples that come with the names of theirs."""
  parts: dict[str, list[Example]] = {split: [] for split in splits}
  for split, example in examples:
    if split in parts:
      parts[split].append(example)
  return {split: FileSource(part, folder, pictures) for split, part in parts.items()}


def base(folder: str) -> Path:
  """Where the files of a data set lie: `data.dir`, or the working directory."""
  return Path(folder).expanduser()


def missing(fault: str, how: str) -> MissingData:
  """The error that a data set is not there.

  Args:
    fault: what was looked for, and where.
    how: where to get it, and how to put it there.
  """
  return MissingData(f"data: {fault}.\n  {how}\n  Lies it elsewhere, add --config.data.dir=FOLDER")


def home(
  base: Path, folders: Sequence[str], namings: Sequence[Sequence[str]], source: Path
) -> tuple[Path, int]:
  """The folder in which most of the images are found, of those that data sets keep them in.

  Args:
    base: of the data set.
    folders: that may hold the images, from there; "" for itself.
    namings: the images' names, in each way that they may be written.
    source: the file that names them, for messages.

  Returns:
    The folder, and the number of the naming.

  Raises:
    MissingData: none is found in any.
  """
  tried = [
    (sum(os.path.isfile(base / folder / name) for name in names[:_LOOKED_AT]), folder, i)
    for folder in folders
    for i, names in enumerate(namings)
  ]
  found, folder, i = max(tried, key=lambda attempt: attempt[0])  # of equal ones the first
  if not found and any(namings):
    looked = ", ".join(dict.fromkeys(str(base / folder) for folder in folders))
    examples = " or ".join(repr(names[0])[:80] for names in namings if names)
    raise missing(
      f"no images of {source} in {looked}", f"Put them into one of these; the first is {examples}"
    )
  return base / folder, i
