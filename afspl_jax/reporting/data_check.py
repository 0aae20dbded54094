"""Looks a data set through before anything is trained on it, and says all that is wrong with it."""

import contextlib
import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from afspl_jax.config.experiment import Data
from afspl_jax.data.bad_records import Faults, MissingData
from afspl_jax.data.read_ahead import ahead
from afspl_jax.data.records import SPLITS
from afspl_jax.data.sources import open_splits
from afspl_jax.errors import SettingError, UserError
from afspl_jax.reporting.text_table import columns
from afspl_jax.types import Example, Source

_MOST = 20  # rows of a table
_AHEAD = 1000  # images whose hashes may wait for an earlier one's
_NAMED = 5  # of a group of equal images


@dataclass(frozen=True)
class Report:
  """What a data set holds, and what is wrong with it."""

  lines: list[str]  # counts, tables and remarks, for people
  faults: dict[str, list[str]]  # by kind; each a line with the file and line or record it is of

  @property
  def usable(self) -> bool:
    """Whether there are no faults."""
    return not any(self.faults.values())

  @property
  def text(self) -> str:
    """All of it, the faults and the verdict last."""
    if self.usable:
      return "\n".join([*self.lines, "", "usable: no faults"])
    faults = [fault for kind in self.faults.values() for fault in kind]
    counts = ", ".join(f"{len(kind)} {name}" for name, kind in self.faults.items() if kind)
    return "\n".join([*self.lines, "", *faults, "", f"{len(faults)} faults: {counts}"])


class _Picture(NamedTuple):
  split: str
  site: str
  key: str


def prepare(data: Data, jobs: int = 0) -> Report:
  """Reads all records of a data set and decodes all of its images.

  Args:
    data: `source`, and what it needs.
    jobs: images decoded at a time; 0 = one a core.

  Raises:
    MissingData: it is not there.
    SettingError: `data` is not what a source may be opened with.
  """
  found = Faults(None)
  try:
    sources = open_splits(SPLITS, data, found)
    examples = {split: [s[i] for i in range(len(s))] for split, s in sources.items()}
  except (MissingData, SettingError):
    raise
  except UserError as error:
    faults = {**_by_kind(found), "file that cannot be used": [str(error)]}
    return Report([f"data set: {_name(data)}"], faults)
  hashes, undecodable = _decode(sources, examples, jobs)
  leaks, remarks = _duplicates(hashes)
  remarks += [f"no image is of {split}" for split in SPLITS if not examples.get(split)]
  empty = [] if any(examples.values()) else [f"{_name(data)}: expected records; got none"]
  return Report(
    lines=[
      f"data set: {_name(data)}",
      *_counts(examples),
      *_shares("site", examples, lambda example: (example.site,) if example.site else ()),
      *_shares("label", examples, lambda example: example.labels),
      *_lengths([example for part in examples.values() for example in part]),
      *([""] if remarks else []),
      *(f"remark: {line}" for line in remarks),
    ],
    faults={
      **_by_kind(found),
      "image undecodable": undecodable,
      "image in several splits": leaks,
      "no records": empty,
    },
  )


def _by_kind(found: Faults) -> dict[str, list[str]]:
  out: dict[str, list[str]] = {}
  for fault in found.found:
    out.setdefault(fault.kind, []).append(str(fault))
  return out


def _name(data: Data) -> str:
  return f"{data.source} in {data.dir or 'the default folder'}"


def _decode(
  sources: Mapping[str, Source], examples: Mapping[str, Sequence[Example]], jobs: int
) -> tuple[dict[str, list[_Picture]], list[str]]:
  """The images by the hash of their pixels, and what is wrong with those that have none."""
  pictures = []
  for split, part in examples.items():
    sites = {example.image: example.site for example in part}
    pictures += [_Picture(split, site, key) for key, site in sites.items()]

  def look(picture: _Picture) -> tuple[str, str]:
    try:
      image = sources[picture.split].load_image(picture.key)
    except UserError as error:
      return "", str(error)
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest(), ""

  hashes: dict[str, list[_Picture]] = defaultdict(list)
  faults: list[str] = []
  with contextlib.closing(ahead(look, pictures, _AHEAD, jobs)) as looked:
    shown = tqdm(looked, "decoding images", len(pictures))
    for picture, (pixels, fault) in zip(pictures, shown, strict=True):
      if fault:
        faults.append(fault)
      else:
        hashes[pixels].append(picture)
  return hashes, faults


def _duplicates(hashes: Mapping[str, list[_Picture]]) -> tuple[list[str], list[str]]:
  """Images that are in several splits, which are faults, and others that are there twice."""
  leaks, across, twice = [], [], 0
  for group in hashes.values():
    if len({picture.split for picture in group}) > 1:
      leaks.append(
        f"{_named(group)}: expected each image in one split; got the same pixels. Give them one."
      )
    elif len({picture.site for picture in group}) > 1:
      across.append(f"one image at several sites: {_named(group)}")
    elif len(group) > 1:
      twice += 1
  if twice:
    across.append(f"{twice:,} images are there under several names")
  return leaks, across


def _named(group: Sequence[_Picture]) -> str:
  """Some of a group of images, of each split and site the first before any other."""
  seen: set[tuple[str, str]] = set()
  first: list[_Picture] = []
  rest: list[_Picture] = []
  for picture in group:
    (rest if picture[:2] in seen else first).append(picture)
    seen.add(picture[:2])
  shown = [
    f"{p.key} ({' of '.join(filter(None, (p.split, p.site)))})" for p in (first + rest)[:_NAMED]
  ]
  more = [f"{len(group) - _NAMED:,} more"] if len(group) > _NAMED else []
  return ", ".join(shown + more)


def _counts(examples: Mapping[str, Sequence[Example]]) -> list[str]:
  rows = [["split", "images", "examples", "captioned", "asked", "references"]]
  for split, part in examples.items():
    asked = sum(bool(example.question) for example in part)
    references = sum(len(example.references) for example in part)
    images = len({example.image for example in part})
    numbers = (images, len(part), len(part) - asked, asked, references)
    rows.append([split, *(f"{number:,}" for number in numbers)])
  return ["", *columns(rows)]


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
  return ["", *columns(rows), *more]


def _lengths(examples: Sequence[Example]) -> list[str]:
  texts = {
    "captions": [t for e in examples if not e.question for t in e.references],
    "questions": [e.question for e in examples if e.question],
    "answers": [t for e in examples if e.question for t in e.references],
  }
  rows = [["words", "median", "99 %", "longest"]]
  for name, said in texts.items():
    if said:
      words = [len(text.split()) for text in said]
      numbers = (*np.percentile(words, (50, 99)), max(words))
      rows.append([name, *(f"{number:.0f}" for number in numbers)])
  return ["", *columns(rows)] if len(rows) > 1 else []
