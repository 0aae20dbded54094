"""Flickr8k and Flickr30k, in each format of their releases.

`captions.txt` has `image,caption`; `Flickr8k.token.txt` and `results_20130124.token` have
`image#number`, a tab and a caption; `results.csv` has `image| number| caption`.
"""

import csv
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

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
from afspl_jax.data.records import text_lines
from afspl_jax.data.splits import hashed_split, named_split
from afspl_jax.errors import UserError
from afspl_jax.storage.text_check import is_text
from afspl_jax.types import Example

PATTERNS = ("captions.txt", "results.csv", "*.token", "*.token.txt")
FOLDERS = (
  "Images",
  "images",
  "Flicker8k_Dataset",
  "Flickr8k_Dataset",
  "flickr30k-images",
  "flickr30k_images",
  "",
)
_LISTS = "Images"  # ends the names of lists of images, after that of a split
_HOW = f"Put one of {', '.join(PATTERNS)} there, and the images beside it, in Images/"


def open_splits(
  splits: Sequence[str], data: Data, bad_records: BadRecords
) -> dict[str, FileSource]:
  """Opens splits from lists such as Flickr_8k.trainImages.txt, else by the hash of image names.

  Args:
    splits: names of the splits.
    data: `dir` holds the files.
    bad_records: collects the records that are left out.

  Raises:
    MissingData: they were not found.
    UserError: one has another format, or too many lines are bad.
  """
  folder = data_folder(data.dir)
  path = find_single_file(folder, PATTERNS, _HOW)
  form, row = _FORMS[".token" if ".token" in path.name else path.name]
  rows = []
  for where, line in text_lines(path, bad_records):
    if _is_header(line, where):
      continue
    with bad_records.skipping():
      rows.append((where, *_row(line, where, form, row)))
  root, _ = find_image_folder(
    folder, FOLDERS, [list(dict.fromkeys(image for _, image, _ in rows))], path
  )
  images = ImageFolder(root)
  captions: dict[str, list[str]] = {}
  for where, image, caption in rows:
    with bad_records.skipping():
      captions.setdefault(images.find(image, where), []).append(caption)
  listed = _listed(folder)
  found = (
    (
      listed.get(_composed(image), "") if listed else hashed_split(image),
      Example(image, image, tuple(texts)),
    )
    for image, texts in captions.items()
  )
  return sources_by_split(splits, found, images)


def _comma(line: str) -> list[str]:
  # A line at a time: a quote that is never closed spoils only its own line.
  return next(csv.reader([line], strict=True))


def _token(line: str) -> list[str]:
  image, tab, caption = line.partition("\t")
  image, number, _ = image.rpartition("#")
  return [image, caption] if tab and number else []


def _bars(line: str) -> list[str]:
  image, *rest = line.split("|", 2)
  return [image.strip(), rest[1]] if len(rest) == 2 else []


_FORMS: dict[str, tuple[str, Callable[[str], list[str]]]] = {
  "captions.txt": ("image,caption", _comma),
  ".token": ("image#number<TAB>caption", _token),
  "results.csv": ("image| number| caption", _bars),
}


def _is_header(line: str, where: str) -> bool:
  first = re.split(r"[,|]", line)[0].strip()
  return where.endswith(":1") and first in ("image", "image_name")


def _row(line: str, where: str, form: str, split: Callable[[str], list[str]]) -> tuple[str, str]:
  try:
    parts = [part.strip() for part in split(line)]
  except csv.Error:
    parts = []
  if len(parts) != 2 or not all(map(is_text, parts)):
    raise BadRecord(
      where, "no caption", f"expected {form}; got {line!r:.80}. Correct or remove the line."
    )
  return parts[0], parts[1]


def _composed(name: str) -> str:
  return unicodedata.normalize("NFC", name)


def _listed(folder: Path) -> dict[str, str]:
  """The split of each image in the lists of the data set."""
  out: dict[str, str] = {}
  for path in sorted(folder.glob(f"*{_LISTS}.txt")):
    split = named_split(re.split(r"[\W_]", path.stem.removesuffix(_LISTS))[-1])
    for where, name in text_lines(path, BadRecords()) if split else ():
      image = _composed(name.strip())
      if out.setdefault(image, split) != split:
        raise UserError(
          f"{where}: expected an image of {split} only; got {image!r:.60}, which is also in"
          f" {out[image]}. Remove one."
        )
  return out
