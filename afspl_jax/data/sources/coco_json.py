"""Captions in COCO's JSON, with a folder of images."""

from collections.abc import Sequence
from pathlib import Path

from afspl_jax.config.experiment import Data
from afspl_jax.data.annotation_files import entries_by_id, files_by_split
from afspl_jax.data.bad_records import BadRecord, BadRecords
from afspl_jax.data.image_files import (
  FileSource,
  ImageFolder,
  data_folder,
  find_image_folder,
  sources_by_split,
)
from afspl_jax.data.records import as_object, id_field, list_entries, read_json_file, text_field
from afspl_jax.data.splits import hashed_split, splits_served
from afspl_jax.types import Example

PATTERN = "captions*.json"
_HOW = """\
Put captions_train2017.json and captions_val2017.json of COCO, or files like them, there, and the
  images beside them in train2017/ and val2017/, or all in images/"""


def open_splits(
  splits: Sequence[str], data: Data, bad_records: BadRecords
) -> dict[str, FileSource]:
  """Opens splits; val serves validation and test, because COCO's test part has no captions.

  Args:
    splits: names of the splits.
    data: `dir` holds the files.
    bad_records: collects the records that are left out.

  Raises:
    MissingData: they were not found.
    UserError: one has another format, or too many records are bad.
  """
  files = files_by_split(data_folder(data.dir), PATTERN, _HOW)
  out: dict[str, FileSource] = {}
  for part, among in splits_served(files).items():
    if wanted := [split for split in splits if split in among]:
      out |= _open(files[part], data_folder(data.dir), wanted, among, bad_records)
  return {split: out[split] for split in splits if split in out}


def _open(
  path: Path, folder: Path, wanted: Sequence[str], among: tuple[str, ...], bad_records: BadRecords
) -> dict[str, FileSource]:
  content = read_json_file(path)
  entries = list(list_entries(content, "images", path))
  names = [str(e["file_name"]) for _, e in entries if isinstance(e, dict) and "file_name" in e]
  tag = path.stem.removeprefix("captions").strip("_")  # train2017
  tag = "" if tag == ".." else tag  # the name of a folder, which must be inside
  root, _ = find_image_folder(folder, ("", "images", tag, f"images/{tag}"), [names], path)
  images = ImageFolder(root)
  files = entries_by_id(
    entries,
    "id",
    lambda entry, where: images.find(text_field(entry, "file_name", where), where, "file_name"),
    bad_records,
  )
  captions: dict[str, list[str]] = {}
  for where, entry in list_entries(content, "annotations", path):
    with bad_records.skipping():
      image = id_field(as_object(entry, where), "image_id", where)
      if files.knows(image, where, "image_id", "images"):
        captions.setdefault(image, []).append(text_field(entry, "caption", where))
  found = []
  for image, (where, name) in files.values.items():
    with bad_records.skipping():
      if image not in captions:
        raise BadRecord(
          where, "no caption", 'expected a caption in "annotations"; got none. Add one.'
        )
      example = Example(id=image, image=name, references=tuple(captions[image]))
      found.append((hashed_split(name, among), example))
  return sources_by_split(wanted, found, images)
