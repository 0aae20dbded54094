"""Captions in COCO's JSON, with a folder of images."""

from collections.abc import Sequence
from pathlib import Path

from afspl_jax.config.experiment import Data
from afspl_jax.data.annotation_files import by_name, keyed
from afspl_jax.data.bad_records import Faults, Malformed
from afspl_jax.data.image_files import FileSource, ImageFolder, base, by_split, home
from afspl_jax.data.records import fields, members, read_json, served, split_of, text
from afspl_jax.types import Example

PATTERN = "captions*.json"
_HOW = """\
Put captions_train2017.json and captions_val2017.json of COCO, or files like them, there, and the
  images beside them in train2017/ and val2017/, or all in images/"""


def open_splits(splits: Sequence[str], data: Data, faults: Faults) -> dict[str, FileSource]:
  """Opens splits; COCO's own test part has no captions, and so val serves validation and test.

  Args:
    splits: their names.
    data: `dir` holds the files.
    faults: what may be left out.

  Raises:
    MissingData: they are not there.
    UserError: one is of another form, or more records are malformed than allowed.
  """
  files = by_name(base(data.dir), PATTERN, _HOW)
  out: dict[str, FileSource] = {}
  for part, among in served(files).items():
    if wanted := [split for split in splits if split in among]:
      out |= _open(files[part], base(data.dir), wanted, among, faults)
  return {split: out[split] for split in splits if split in out}


def _open(
  path: Path, base: Path, wanted: Sequence[str], among: tuple[str, ...], faults: Faults
) -> dict[str, FileSource]:
  content = read_json(path)
  entries = list(members(content, "images", path))
  names = [str(e["file_name"]) for _, e in entries if isinstance(e, dict) and "file_name" in e]
  tag = path.stem.removeprefix("captions").strip("_")  # train2017
  tag = "" if tag == ".." else tag  # it names a folder, which must be inside
  root, _ = home(base, ("", "images", tag, f"images/{tag}"), [names], path)
  images = ImageFolder(root)
  files = keyed(
    entries,
    "id",
    lambda entry, where: images.find(text(entry, "file_name", where), where, "file_name"),
    faults,
  )
  captions: dict[str, list[str]] = {}
  for where, entry in members(content, "annotations", path):
    with faults.skipping():
      image = text(fields(entry, where), "image_id", where, number=True)
      if files.knows(image, where, "image_id", "images"):
        captions.setdefault(image, []).append(text(entry, "caption", where))
  found = []
  for image, (where, name) in files.values.items():
    with faults.skipping():
      if image not in captions:
        raise Malformed(
          where, "no caption", 'expected a caption in "annotations"; got none. Add one.'
        )
      example = Example(id=image, image=name, references=tuple(captions[image]))
      found.append((split_of(name, among), example))
  return by_split(wanted, found, images)
