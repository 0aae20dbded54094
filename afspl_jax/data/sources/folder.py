"""A folder of images with a line of JSON for each in `captions.jsonl`.

    {"image": "scans/17.png", "captions": ["No acute findings."], "site": "aachen"}

A line has an `image`, the path from the folder, and `captions`, or a `question` with `answers`, or
all of them, which makes two examples. `site`, `labels`, `split` and `id` are optional.
"""

import difflib
import os
from collections.abc import Sequence
from typing import Any

from afspl_jax.config.experiment import Data
from afspl_jax.data.bad_records import BadRecord, BadRecords
from afspl_jax.data.image_files import (
  FileSource,
  ImageFolder,
  data_folder,
  missing_data,
  sources_by_split,
)
from afspl_jax.data.records import (
  ConsistentValues,
  UniqueValues,
  as_object,
  json_line_values,
  text_field,
  text_list,
)
from afspl_jax.data.splits import SPLITS, hashed_split, named_split
from afspl_jax.types import Example

FILE = "captions.jsonl"
KEYS = ("image", "captions", "question", "answers", "site", "labels", "split", "id")
_LONGEST_SITE = 80  # characters of a name in a federation
_HOW = f"""Write it: a line for each image in {FILE}, such as
  {{"image": "scans/17.png", "captions": ["No acute findings."], "site": "aachen"}}"""


def open_splits(
  splits: Sequence[str], data: Data, bad_records: BadRecords
) -> dict[str, FileSource]:
  """Opens splits; an image without one gets train, validation or test by the hash of its name.

  Args:
    splits: names of the splits.
    data: `dir` is the folder.
    bad_records: collects the records that are left out.

  Raises:
    MissingData: captions.jsonl was not found.
    UserError: too many lines are bad.
  """
  path = data_folder(data.dir) / FILE
  if not os.path.isfile(path):
    raise missing_data(f"no {FILE} in {data_folder(data.dir).absolute()}", _HOW)
  reader = _Reader(ImageFolder(path.parent), bad_records)
  read: list[tuple[str, list[tuple[str, Example]]]] = []
  for where, record in json_line_values(path, bad_records):
    with bad_records.skipping():
      read.append((where, reader.read(record, where)))
  some_have_sites = any(example.site for _, found in read for _, example in found)
  kept: list[tuple[str, Example]] = []
  for where, found in read:
    with bad_records.skipping():
      if some_have_sites and not found[0][1].site:
        raise BadRecord(
          where, "no site", '"site" must be on every line or on none; got none here. Add it.'
        )
      kept += found
  return sources_by_split(splits, kept, reader.images)


class _Reader:
  def __init__(self, images: ImageFolder, blanks: BadRecords):
    self.images, self._blanks = images, blanks
    self._ids, self._sites, self._splits = (
      UniqueValues("id"),
      ConsistentValues("site"),
      ConsistentValues("split"),
    )

  def read(self, record: Any, where: str) -> list[tuple[str, Example]]:
    """The examples of a line, with their split."""
    record = as_object(record, where)
    _check_keys(record, where)
    image = self.images.find(text_field(record, "image", where), where)
    # Many exports write null for a missing value.
    record = {key: value for key, value in record.items() if value is not None}
    site = text_field(record, "site", where) if "site" in record else ""
    if len(site) > _LONGEST_SITE or not site.isprintable():
      raise BadRecord(
        where,
        "site",
        f'"site" must be a name of at most {_LONGEST_SITE} printable characters; got'
        f" {site!r:.100}. Shorten it.",
      )
    split = _split(record, image, where)
    common: dict[str, Any] = {
      "image": image,
      "site": site,
      "labels": text_list(record, "labels", where) if record.get("labels") else (),
    }
    record_id = text_field(record, "id", where, number=True) if "id" in record else ""
    # Without an id, the line number makes the name unique.
    name = record_id or f"{image}:{where.rpartition(':')[2]}"
    out = []
    if "captions" in record:
      captions = text_list(record, "captions", where)
      out.append(Example(id=name, references=captions, **common))
    if "question" in record or "answers" in record:
      question = text_field(record, "question", where)
      answers = text_list(record, "answers", where, self._blanks)
      asked = f"{name}-q" if out else name
      out.append(Example(id=asked, references=answers, question=question, **common))
    if not out:
      raise BadRecord(
        where,
        "no text",
        f'expected "captions", or "question" and "answers"; got {sorted(record)!r:.200}. Add them.',
      )
    self._sites.add(image, site, where)
    self._splits.add(image, split, where)
    for example in out:
      self._ids.add(example.id, where)
    return [(split, example) for example in out]


def _split(record: dict[str, Any], image: str, where: str) -> str:
  if "split" not in record:
    return hashed_split(image)
  split = text_field(record, "split", where)
  if not named_split(split):
    raise BadRecord(
      where,
      "split",
      f'"split" must be one of {", ".join(SPLITS)}; got {split!r:.60}. Correct or remove it.',
    )
  return named_split(split)


def _check_keys(record: dict[str, Any], where: str) -> None:
  """Checks for misspelt keys; other unknown keys are allowed."""
  for key in record:
    if key not in KEYS and "_" not in key:
      for meant in difflib.get_close_matches(key.lower(), KEYS, n=1, cutoff=0.8):
        raise BadRecord(
          where, f"{meant} misspelt", f'expected the key "{meant}"; got {key!r:.60}. Rename it.'
        )
