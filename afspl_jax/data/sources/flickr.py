"""Flickr8k and Flickr30k, in each of the forms that they are shipped in.

`captions.txt` has `image,caption`; `Flickr8k.token.txt` and `results_20130124.token` have
`image#number`, a tab and a caption; `results.csv` has `image| number| caption`.
"""

import csv
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from afspl_jax.config.experiment import Data
from afspl_jax.data.annotation_files import one_of
from afspl_jax.data.bad_records import Faults, Malformed
from afspl_jax.data.image_files import FileSource, ImageFolder, base, by_split, home
from afspl_jax.data.records import lines, split_of
from afspl_jax.errors import UserError
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
_LISTS = {"trainImages": "train", "devImages": "validation", "testImages": "test"}
_HOW = f"Put one of {', '.join(PATTERNS)} there, and the images beside it, in Images/"


def open_splits(splits: Sequence[str], data: Data, faults: Faults) -> dict[str, FileSource]:
  """Opens splits: as Flickr_8k.trainImages.txt and its like say, or by images' names' hash.

  Args:
    splits: their names.
    data: `dir` holds the files.
    faults: what may be left out.

  Raises:
    MissingData: they are not there.
    UserError: one is of another form, or more lines are malformed than allowed.
  """
  folder = base(data.dir)
  path = one_of(folder, PATTERNS, _HOW)
  form, row = _FORMS[".token" if ".token" in path.name else path.name]
  rows = []
  for where, line in lines(path, faults):
    if _is_header(line, where):
      continue
    with faults.skipping():
      rows.append((where, *_row(line, where, form, row)))
  root, _ = home(folder, FOLDERS, [list(dict.fromkeys(image for _, image, _ in rows))], path)
  images = ImageFolder(root)
  captions: dict[str, list[str]] = {}
  for where, image, caption in rows:
    with faults.skipping():
      captions.setdefault(images.find(image, where), []).append(caption)
  listed = _listed(folder)
  found = (
    (listed.get(image, "") if listed else split_of(image), Example(image, image, tuple(said)))
    for image, said in captions.items()
  )
  return by_split(splits, found, images)


def _comma(line: str) -> list[str]:
  # A line at a time: a quote that is never closed spoils its own line alone.
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
  if len(parts) != 2 or not all(parts):
    raise Malformed(
      where, "no caption", f"expected {form}; got {line!r:.80}. Correct or remove the line."
    )
  return parts[0], parts[1]


def _listed(folder: Path) -> dict[str, str]:
  """The split of each image that a list of the data set's own names; those of no list have none."""
  out: dict[str, str] = {}
  for path in sorted(folder.glob("*Images.txt")):
    for end, split in _LISTS.items():
      if path.stem.endswith(end):
        for where, name in lines(path, Faults()):
          if out.setdefault(name.strip(), split) != split:
            raise UserError(
              f"{where}: expected an image of {split} alone; got {name.strip()!r:.60}, which is of"
              f" {out[name.strip()]}, too. Remove one."
            )
  return out
