"""Captions in the split of Karpathy and Li (2015): `dataset_coco.json` and those of Flickr."""

from collections.abc import Sequence

from afspl_jax.config.experiment import Data
from afspl_jax.data.annotation_files import one_of
from afspl_jax.data.bad_records import Faults, Malformed
from afspl_jax.data.image_files import FileSource, ImageFolder, base, by_split, home
from afspl_jax.data.records import Distinct, fields, members, read_json, text, texts_of
from afspl_jax.data.sources import flickr
from afspl_jax.types import Example

PATTERNS = ("dataset_*.json",)
_SPLITS = {"train": "train", "restval": "train", "val": "validation", "test": "test"}
_HOW = """\
Put one of dataset_coco.json, dataset_flickr8k.json and dataset_flickr30k.json of Karpathy's
  caption_datasets.zip there, and the images beside it: COCO's in train2014/ and val2014/"""


def open_splits(splits: Sequence[str], data: Data, faults: Faults) -> dict[str, FileSource]:
  """Opens splits; train is Karpathy's train and restval.

  Args:
    splits: their names.
    data: `dir` holds the files.
    faults: what may be left out.

  Raises:
    MissingData: they are not there.
    UserError: the file is of another form, or more records are malformed than allowed.
  """
  folder = base(data.dir)
  path = one_of(folder, PATTERNS, _HOW)
  read = []
  for where, entry in members(read_json(path), "images", path):
    with faults.skipping():
      entry = fields(entry, where)
      name = text(entry, "filename", where)
      below = f"{text(entry, 'filepath', where)}/{name}" if entry.get("filepath") else name
      split = text(entry, "split", where)
      if split not in _SPLITS:
        raise Malformed(
          where,
          "split",
          f'"split" must be one of {", ".join(_SPLITS)}; got {split!r:.60}. Correct it.',
        )
      said = texts_of(entry, "sentences", "raw", where)
      own = text(entry, "cocoid", where, number=True) if "cocoid" in entry else below
      read.append((where, (below, name), _SPLITS[split], own, said))
  names = [[both[i] for _, both, *_ in read] for i in range(2)]
  root, naming = home(folder, ("", *flickr.FOLDERS), names, path)
  images, names_seen, ids = ImageFolder(root), Distinct("filename"), Distinct("cocoid")
  found = []
  for where, both, split, own, said in read:
    with faults.skipping():
      image = images.find(both[naming], where, "filename")
      names_seen.add(image, where)
      ids.add(own, where)
      found.append((split, Example(own, image, said)))
  return by_split(splits, found, images)
