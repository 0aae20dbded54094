"""Reports of studies with several images, such as IU X-Ray, in the format of R2Gen.

Chen et al. 2020, "Generating radiology reports via memory-driven transformer".
"""

import os
from collections.abc import Sequence
from typing import Any

from afspl_jax.config.experiment import Data
from afspl_jax.data.bad_records import BadRecords
from afspl_jax.data.image_files import (
  FileSource,
  ImageFolder,
  data_folder,
  find_image_folder,
  missing_data,
  sources_by_split,
)
from afspl_jax.data.records import (
  UniqueValues,
  as_object,
  list_entries,
  read_json_file,
  text_field,
  text_list,
)
from afspl_jax.data.splits import named_split
from afspl_jax.types import Example

FILE, KEY = "annotation.json", "image_path"
_SPLITS = {"train": "train", "validation": "val", "test": "test"}  # R2Gen's names
_HOW = f"Put R2Gen's {FILE} there, and the images in images/ beside it"


def open_splits(
  splits: Sequence[str], data: Data, bad_records: BadRecords
) -> dict[str, FileSource]:
  """Opens splits: studies with their report.

  The images of a study are joined to one square picture on black (`images.montage`), whose key is
  the id of the study.

  Args:
    splits: names of the splits.
    data: `dir` holds the files.
    bad_records: collects the records that are left out.

  Raises:
    MissingData: they were not found.
    UserError: the file has another format, or too many records are bad.
  """
  folder = data_folder(data.dir)
  path = folder / FILE
  if not os.path.isfile(path):
    raise missing_data(f"no {FILE} in {folder.absolute()}", _HOW)
  content = read_json_file(path)
  entries = [
    (split, where, entry)
    for split, name in _lists(content)
    for where, entry in list_entries(content, name, path)
  ]
  names = [name for _, _, entry in entries for name in _named(entry)]
  root, _ = find_image_folder(folder, ("images", ""), [names], path)
  images, ids = ImageFolder(root), UniqueValues("id")
  montages: dict[str, list[str]] = {}
  found = []
  for split, where, entry in entries:
    with bad_records.skipping():
      study = text_field(as_object(entry, where), "id", where, number=True)
      report = text_field(entry, "report", where)
      files = [images.find(name, where, KEY) for name in text_list(entry, KEY, where)]
      ids.add(study, where)
      montages[study] = files
      found.append((split, Example(id=study, image=study, references=(report,))))
  return sources_by_split(splits, found, images, montages)


def _lists(content: Any) -> list[tuple[str, str]]:
  """Pairs of a split and the key of a list of its studies; a missing list has R2Gen's key."""
  keys = list(content) if isinstance(content, dict) else []
  return [
    (split, key)
    for split, name in _SPLITS.items()
    for key in [key for key in keys if named_split(key) == split] or [name]
  ]


def _named(entry: Any) -> list[str]:
  """The image names in a record that has not been checked yet."""
  value = entry.get(KEY) if isinstance(entry, dict) else None
  return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []
