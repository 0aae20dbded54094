"""A folder of one's own: images, and a line of JSON for each in `captions.jsonl`.

    {"image": "scans/17.png", "captions": ["No acute findings."], "site": "aachen"}

A line has an `image`, by its path from the folder, and `captions`, or a `question` with `answers`,
or all three, which makes two examples. The rest is optional: `site`, `labels`, `split` and `id`.
"""

import difflib
import os
from collections.abc import Sequence
from typing import Any

from afspl_jax.config.experiment import Data
from afspl_jax.data.bad_records import Faults, Malformed
from afspl_jax.data.image_files import FileSource, ImageFolder, base, by_split, missing
from afspl_jax.data.records import (
  SPLITS,
  Agreed,
  Distinct,
  fields,
  json_lines,
  split_of,
  text,
  texts,
)
from afspl_jax.types import Example

FILE = "captions.jsonl"
KEYS = ("image", "captions", "question", "answers", "site", "labels", "split", "id")
_ALSO = {"val": "validation"}
_LONGEST_SITE = 80  # characters of a name in a federation
_HOW = f"""Write it: a line for each image in {FILE}, such as
  {{"image": "scans/17.png", "captions": ["No acute findings."], "site": "aachen"}}"""


def open_splits(splits: Sequence[str], data: Data, faults: Faults) -> dict[str, FileSource]:
  """Opens splits; an image without one is in 70, 10 or 20 % of them by its name's hash.

  Args:
    splits: their names.
    data: `dir` is the folder.
    faults: what may be left out.

  Raises:
    MissingData: there is no such file.
    UserError: more lines are malformed than allowed.
  """
  path = base(data.dir) / FILE
  if not os.path.isfile(path):
    raise missing(f"no {FILE} in {base(data.dir).absolute()}", _HOW)
  reader = _Reader(ImageFolder(path.parent))
  read: list[tuple[str, list[tuple[str, Example]]]] = []
  for where, record in json_lines(path, faults):
    with faults.skipping():
      read.append((where, reader.read(record, where)))
  some_have_sites = any(example.site for _, found in read for _, example in found)
  kept: list[tuple[str, Example]] = []
  for where, found in read:
    with faults.skipping():
      if some_have_sites and not found[0][1].site:
        raise Malformed(
          where, "no site", '"site" must be on every line or on none; got none here. Add it.'
        )
      kept += found
  return by_split(splits, kept, reader.images)


class _Reader:
  def __init__(self, images: ImageFolder):
    self.images = images
    self._ids, self._sites, self._splits = Distinct("id"), Agreed("site"), Agreed("split")

  def read(self, record: Any, where: str) -> list[tuple[str, Example]]:
    """The examples of a line, with their split."""
    record = fields(record, where)
    _check_keys(record, where)
    image = self.images.find(text(record, "image", where), where)
    # What is null is not there: many exports write it so.
    record = {key: value for key, value in record.items() if value is not None}
    site = text(record, "site", where) if "site" in record else ""
    if len(site) > _LONGEST_SITE or not site.isprintable():
      raise Malformed(
        where,
        "site",
        f'"site" must be a name of at most {_LONGEST_SITE} printable characters; got'
        f" {site!r:.100}. Shorten it.",
      )
    split = _split(record, image, where)
    common: dict[str, Any] = {
      "image": image,
      "site": site,
      "labels": texts(record, "labels", where) if record.get("labels") else (),
    }
    own = text(record, "id", where, number=True) if "id" in record else ""
    # Unique without an id, too: the line's number.
    name = own or f"{image}:{where.rpartition(':')[2]}"
    out = []
    if "captions" in record:
      captions = texts(record, "captions", where)
      out.append(Example(id=name, references=captions, **common))
    if "question" in record or "answers" in record:
      question, answers = text(record, "question", where), texts(record, "answers", where)
      asked = f"{name}-q" if out else name
      out.append(Example(id=asked, references=answers, question=question, **common))
    if not out:
      raise Malformed(
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
    return split_of(image)
  split = text(record, "split", where)
  split = _ALSO.get(split, split)
  if split not in SPLITS:
    raise Malformed(
      where,
      "split",
      f'"split" must be one of {", ".join(SPLITS)}; got {split!r:.60}. Correct or remove it.',
    )
  return split


def _check_keys(record: dict[str, Any], where: str) -> None:
  """Other keys may stand there, but not such as are meant to be one of ours."""
  for key in record:
    if key not in KEYS and "_" not in key:
      for meant in difflib.get_close_matches(key.lower(), KEYS, n=1, cutoff=0.8):
        raise Malformed(
          where, f"{meant} misspelt", f'expected the key "{meant}"; got {key!r:.60}. Rename it.'
        )
