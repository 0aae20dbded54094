"""Checks a data set before training: reports its contents and all errors in it."""

import contextlib
import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from afspl_jax.config.experiment import Data
from afspl_jax.data.bad_records import BadRecords, MissingData
from afspl_jax.data.read_ahead import map_ahead
from afspl_jax.data.sources import open_splits
from afspl_jax.data.splits import SPLITS
from afspl_jax.errors import SettingError, UserError
from afspl_jax.reporting.text_table import align_columns
from afspl_jax.types import Example, Source

_MOST = 20  # rows of a table
_AHEAD = 1000  # images that may be decoded before an earlier one is ready
_NAMED = 5  # images that are named of a group of equal ones


@dataclass(frozen=True)
class DataReport:
  """The contents of a data set, and the errors in it."""

  lines: list[str]  # counts, tables and warnings as text
  errors: dict[str, list[str]]  # by error type; each names its file and line or record

  @property
  def usable(self) -> bool:
    """Whether there are no errors."""
    return not any(self.errors.values())

  @property
  def text(self) -> str:
    """The whole report; errors and verdict are at the end."""
    if self.usable:
      return "\n".join([*self.lines, "", "usable: no errors"])
    errors = [error for group in self.errors.values() for error in group]
    counts = ", ".join(f"{len(group)} {name}" for name, group in self.errors.items() if group)
    return "\n".join([*self.lines, "", *errors, "", f"{len(errors)} errors: {counts}"])


class _ImageKey(NamedTuple):
  split: str
  site: str
  key: str


def check_data_set(data: Data, jobs: int = 0) -> DataReport:
  """Reads all records of a data set and decodes all of its images.

  Args:
    data: `source`, and the settings that it needs.
    jobs: images that are decoded at a time; 0 = one for each core.

  Raises:
    MissingData: the data set does not exist.
    SettingError: `data` does not fit the source.
  """
  found = BadRecords(None)
  try:
    sources = open_splits(SPLITS, data, found)
    examples = {split: [s[i] for i in range(len(s))] for split, s in sources.items()}
  except (MissingData, SettingError):
    raise
  except UserError as error:
    errors = {**_by_type(found), "unusable file": [str(error)]}
    return DataReport([f"data set: {_name(data)}"], errors)
  hashes, undecodable = _decode(sources, examples, jobs)
  leaks, warnings = _duplicates(hashes)
  warnings += [f"{split} has no images" for split in SPLITS if not examples.get(split)]
  if found.blank_texts:
    number, first = len(found.blank_texts), found.blank_texts[0]
    warnings.append(f"{number:,} blank answers are skipped, the first of {first}")
  empty = [] if any(examples.values()) else [f"{_name(data)}: expected records; got none"]
  return DataReport(
    lines=[
      f"data set: {_name(data)}",
      *_counts(examples),
      *_shares("site", examples, lambda example: (example.site,) if example.site else ()),
      *_shares("label", examples, lambda example: example.labels),
      *_lengths([example for part in examples.values() for example in part]),
      *([""] if warnings else []),
      *(f"warning: {line}" for line in warnings),
    ],
    errors={
      **_by_type(found),
      "image undecodable": undecodable,
      "image in several splits": leaks,
      "no records": empty,
    },
  )


def _by_type(found: BadRecords) -> dict[str, list[str]]:
  out: dict[str, list[str]] = {}
  for error in found.found:
    out.setdefault(error.problem, []).append(str(error))
  return out


def _name(data: Data) -> str:
  return f"{data.source} in {data.dir or 'the default folder'}"


def _decode(
  sources: Mapping[str, Source], examples: Mapping[str, Sequence[Example]], jobs: int
) -> tuple[dict[str, list[_ImageKey]], list[str]]:
  """The images by the hash of their pixels, and the errors of those that cannot be decoded."""
  images = []
  for split, part in examples.items():
    sites = {example.image: example.site for example in part}
    images += [_ImageKey(split, site, key) for key, site in sites.items()]

  def decode(key: _ImageKey) -> tuple[str, str]:
    try:
      image = sources[key.split].load_image(key.key)
    except UserError as error:
      return "", str(error)
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest(), ""

  hashes: dict[str, list[_ImageKey]] = defaultdict(list)
  errors: list[str] = []
  with contextlib.closing(map_ahead(decode, images, _AHEAD, jobs)) as decoded:
    shown = tqdm(decoded, "decoding images", len(images))
    for key, (pixels, error) in zip(images, shown, strict=True):
      if error:
        errors.append(error)
      else:
        hashes[pixels].append(key)
  return hashes, errors


def _duplicates(hashes: Mapping[str, list[_ImageKey]]) -> tuple[list[str], list[str]]:
  """Errors for images in several splits, and warnings for other duplicates."""
  leaks, warnings, twice = [], [], 0
  for group in hashes.values():
    if len({image.split for image in group}) > 1:
      leaks.append(
        f"{_named(group)}: expected each image in one split; got the same pixels in several."
        " Move them to one split"
      )
    elif len({image.site for image in group}) > 1:
      warnings.append(f"same image at several sites: {_named(group)}")
    elif len(group) > 1:
      twice += 1
  if twice:
    warnings.append(f"{twice:,} images exist under several names")
  return leaks, warnings


def _named(group: Sequence[_ImageKey]) -> str:
  """Names some images of a group; the first of each split and site come first."""
  seen: set[tuple[str, str]] = set()
  first: list[_ImageKey] = []
  rest: list[_ImageKey] = []
  for image in group:
    (rest if image[:2] in seen else first).append(image)
    seen.add(image[:2])
  shown = [
    f"{p.key} ({' of '.join(filter(None, (p.split, p.site)))})" for p in (first + rest)[:_NAMED]
  ]
  more = [f"{len(group) - _NAMED:,} more"] if len(group) > _NAMED else []
  return ", ".join(shown + more)


def _counts(examples: Mapping[str, Sequence[Example]]) -> list[str]:
  rows = [["split", "images", "examples", "captions", "questions", "references"]]
  for split, part in examples.items():
    questions = sum(bool(example.question) for example in part)
    references = sum(len(example.references) for example in part)
    images = len({example.image for example in part})
    numbers = (images, len(part), len(part) - questions, questions, references)
    rows.append([split, *(f"{number:,}" for number in numbers)])
  return ["", *align_columns(rows)]


def _shares(
  title: str, examples: Mapping[str, Sequence[Example]], of: Callable[[Example], Iterable[str]]
) -> list[str]:
  """Images of each site or label in each split, the most frequent first."""
  counts: dict[str, Counter[str]] = {}
  for split, part in examples.items():
    pairs = {(example.image, value) for example in part for value in of(example)}
    counts[split] = Counter(value for _, value in pairs)
  total: Counter[str] = sum(counts.values(), Counter())
  if not total:
    return []
  rows = [[f"{title} (images)", *counts]]
  for value, _ in sorted(total.items(), key=lambda item: (-item[1], item[0]))[:_MOST]:
    rows.append([value, *(f"{counts[split][value]:,}" for split in counts)])
  more = [f"and {len(total) - _MOST:,} more"] if len(total) > _MOST else []
  return ["", *align_columns(rows), *more]


def _lengths(examples: Sequence[Example]) -> list[str]:
  texts = {
    "captions": [t for e in examples if not e.question for t in e.references],
    "questions": [e.question for e in examples if e.question],
    "answers": [t for e in examples if e.question for t in e.references],
  }
  rows = [["words", "median", "99 %", "longest"]]
  for name, part in texts.items():
    if part:
      words = [len(text.split()) for text in part]
      numbers = (*np.percentile(words, (50, 99)), max(words))
      rows.append([name, *(f"{number:.0f}" for number in numbers)])
  return ["", *align_columns(rows)] if len(rows) > 1 else []
