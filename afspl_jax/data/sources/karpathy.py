"""Captions in the split of Karpathy and Li (2015): `dataset_coco.json` and those of Flickr."""

from collections.abc import Sequence

from afspl_jax.config.experiment import Data
from afspl_jax.data.annotation_files import find_single_file
from afspl_jax.data.bad_records import BadRecord, BadRecords
from afspl_jax.data.image_files import (
  FileSource,
  ImageFolder,
  data_folder,
  find_image_folder,
  sources_by_split,
)
from afspl_jax.data.records import (
  UniqueValues,
  as_object,
  id_field,
  list_entries,
  nested_texts,
  read_json_file,
  text_field,
)
from afspl_jax.data.sources import flickr
from afspl_jax.data.splits import named_split
from afspl_jax.types import Example

PATTERNS = ("dataset_*.json",)
_RESTVAL = "restval"  # images of COCO's validation part that train has
_HOW = """\
Put one of dataset_coco.json, dataset_flickr8k.json and dataset_flickr30k.json of Karpathy's
  caption_datasets.zip there, and the images beside it: COCO's in train2014/ and val2014/"""


def open_splits(
  splits: Sequence[str], data: Data, bad_records: BadRecords
) -> dict[str, FileSource]:
  """Opens splits; train is Karpathy's train and restval.

  Args:
    splits: names of the splits.
    data: `dir` holds the files.
    bad_records: collects the records that are left out.

  Raises:
    MissingData: they were not found.
    UserError: the file has another format, or too many records are bad.
  """
  folder = data_folder(data.dir)
  path = find_single_file(folder, PATTERNS, _HOW)
  read = []
  for where, entry in list_entries(read_json_file(path), "images", path):
    with bad_records.skipping():
      entry = as_object(entry, where)
      name = text_field(entry, "filename", where)
      below = f"{text_field(entry, 'filepath', where)}/{name}" if entry.get("filepath") else name
      name_of_split = text_field(entry, "split", where)
      split = "train" if name_of_split == _RESTVAL else named_split(name_of_split)
      if not split:
        raise BadRecord(
          where,
          "split",
          f'"split" must be one of train, restval, val, test; got {name_of_split!r:.60}. Correct'
          " it.",
        )
      captions = nested_texts(entry, "sentences", "raw", where)
      record_id = id_field(entry, "cocoid", where) if "cocoid" in entry else below
      read.append((where, (below, name), split, record_id, captions))
  names = [[both[i] for _, both, *_ in read] for i in range(2)]
  root, naming = find_image_folder(folder, ("", *flickr.FOLDERS), names, path)
  images, names_seen, ids = ImageFolder(root), UniqueValues("filename"), UniqueValues("cocoid")
  found = []
  for where, both, split, record_id, captions in read:
    with bad_records.skipping():
      image = images.find(both[naming], where, "filename")
      names_seen.add(image, where)
      ids.add(record_id, where)
      found.append((split, Example(record_id, image, captions)))
  return sources_by_split(splits, found, images)
