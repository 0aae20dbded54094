"""Reports of studies with several images, as R2Gen (Chen et al. 2020) lists those of IU X-Ray."""

import os
from collections.abc import Sequence
from typing import Any

from afspl_jax.config.experiment import Data
from afspl_jax.data.bad_records import Faults
from afspl_jax.data.image_files import FileSource, ImageFolder, base, by_split, home, missing
from afspl_jax.data.records import Distinct, fields, members, read_json, text, texts
from afspl_jax.types import Example

FILE, KEY = "annotation.json", "image_path"
_SPLITS = {"train": "train", "validation": "val", "test": "test"}
_HOW = f"Put R2Gen's {FILE} there, and the images in images/ beside it"


def open_splits(splits: Sequence[str], data: Data, faults: Faults) -> dict[str, FileSource]:
  """Opens splits: studies with their report.

  The images of a study are put together into one square picture on black (`images.montage`), whose
  key is the study's id.

  Args:
    splits: their names.
    data: `dir` holds the files.
    faults: what may be left out.

  Raises:
    MissingData: they are not there.
    UserError: the file is of another form, or more records are malformed than allowed.
  """
  folder = base(data.dir)
  path = folder / FILE
  if not os.path.isfile(path):
    raise missing(f"no {FILE} in {folder.absolute()}", _HOW)
  content = read_json(path)
  entries = [
    (split, where, entry)
    for split, name in _SPLITS.items()
    for where, entry in members(content, name, path)
  ]
  names = [name for _, _, entry in entries for name in _named(entry)]
  root, _ = home(folder, ("images", ""), [names], path)
  images, ids = ImageFolder(root), Distinct("id")
  pictures: dict[str, list[str]] = {}
  found = []
  for split, where, entry in entries:
    with faults.skipping():
      study = text(fields(entry, where), "id", where, number=True)
      report = text(entry, "report", where)
      files = [images.find(name, where, KEY) for name in texts(entry, KEY, where)]
      ids.add(study, where)
      pictures[study] = files
      found.append((split, Example(id=study, image=study, references=(report,))))
  return by_split(splits, found, images, pictures)


def _named(entry: Any) -> list[str]:
  """The images of a study whose record has not been checked yet."""
  value = entry.get(KEY) if isinstance(entry, dict) else None
  return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []
