"""Questions and answers in the two JSON files of VQA v2 (Goyal et al. 2017), with COCO's images."""

import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

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
from afspl_jax.data.records import (
  id_field,
  list_entries,
  nested_texts,
  number_text,
  plain_id,
  read_json_file,
  text_field,
)
from afspl_jax.data.splits import hashed_split, splits_served
from afspl_jax.errors import UserError
from afspl_jax.types import Example

QUESTIONS, ANNOTATIONS = "*questions.json", "*annotations.json"
_HOW = """\
Put v2_OpenEnded_mscoco_train2014_questions.json and v2_mscoco_train2014_annotations.json, and
  those of val2014, there, and COCO's images beside them in train2014/ and val2014/"""

# Names of COCO's image files: of 2014, of 2017, and of others.
_NAMES: tuple[Callable[[str, str], str], ...] = (
  lambda number, part: f"COCO_{part}_{number:0>12}.jpg",
  lambda number, part: f"{number:0>12}.jpg",
  lambda number, part: f"{number}.jpg",
  lambda number, part: f"{number}.png",
)


def open_splits(
  splits: Sequence[str], data: Data, bad_records: BadRecords
) -> dict[str, FileSource]:
  """Opens splits; val serves validation and test, because VQA's test part has no answers.

  All ten answers of a question are kept, because the accuracy depends on how many are equal. An
  image's labels are the types of its questions' answers, the most frequent first.

  Args:
    splits: names of the splits.
    data: `dir` holds the files.
    bad_records: collects the records that are left out.

  Raises:
    MissingData: they were not found.
    UserError: one has another format, or too many records are bad.
  """
  folder = data_folder(data.dir)
  annotations = files_by_split(folder, ANNOTATIONS, _HOW)
  questions = files_by_split(folder, QUESTIONS, _HOW, of=annotations)
  out: dict[str, FileSource] = {}
  for part, among in splits_served(annotations).items():
    if part not in questions:
      raise UserError(
        f"{annotations[part]}: expected its questions in a file {QUESTIONS} of {part}; got"
        f" {', '.join(path.name for path in questions.values())}. Put it in the same folder."
      )
    if wanted := [split for split in splits if split in among]:
      found, images = _read(questions[part], annotations[part], folder, bad_records)
      out |= sources_by_split(wanted, ((hashed_split(e.image, among), e) for e in found), images)
  return {split: out[split] for split in splits if split in out}


class _Question(NamedTuple):
  image_id: str
  image: str
  text: str


class _Answers(NamedTuple):
  image_id: str  # "" if the annotation has none
  texts: tuple[str, ...]
  kind: str


def _check_same_image(question: _Question, answers: _Answers, where: str) -> None:
  """Checks that a question and its answers are about one image.

  Raises:
    BadRecord: the annotation has another image.
  """
  if answers.image_id not in ("", question.image_id):
    raise BadRecord(
      where,
      "image_id differs",
      f'"image_id" must be that of the question, {question.image_id!r:.60}; got'
      f" {answers.image_id!r:.60}. Correct one of them.",
    )


def _read(
  path: Path, answers: Path, folder: Path, bad_records: BadRecords
) -> tuple[list[Example], ImageFolder]:
  content = read_json_file(path)
  entries = list(list_entries(content, "questions", path))
  subtype = str(content.get("data_subtype", ""))
  part = subtype if re.fullmatch(r"[\w-]+", subtype) else ""  # names a folder, which must be inside
  shown = dict.fromkeys(
    number_text(e["image_id"]) or str(e["image_id"])
    for _, e in entries
    if isinstance(e, dict) and "image_id" in e
  )
  namings = [[name(number, part) for number in shown] for name in _NAMES]
  root, naming = find_image_folder(folder, ("", part, "images", f"images/{part}"), namings, path)
  images = ImageFolder(root)

  def question(entry: dict[str, Any], where: str) -> _Question:
    number = text_field(entry, "image_id", where, number=True)
    image = images.find(_NAMES[naming](number, part), where, "image_id")
    return _Question(plain_id(number), image, text_field(entry, "question", where))

  def answer(entry: dict[str, Any], where: str) -> _Answers:
    number = id_field(entry, "image_id", where) if "image_id" in entry else ""
    kind = text_field(entry, "answer_type", where) if "answer_type" in entry else ""
    # Most of the 4.4 million answers in train are one of a few texts.
    texts = nested_texts(entry, "answers", "answer", where, blanks=bad_records)
    return _Answers(number, tuple(map(sys.intern, texts)), kind)

  asked = entries_by_id(entries, "question_id", question, bad_records)
  given = list_entries(read_json_file(answers), "annotations", answers)
  answered = entries_by_id(given, "question_id", answer, bad_records)
  for number, (where, _) in answered.values.items():
    with bad_records.skipping():
      asked.knows(number, where, "question_id", "questions")
  kinds: dict[str, Counter[str]] = {}
  both = []
  for number, (where, asking) in asked.values.items():
    with bad_records.skipping():
      if answered.knows(number, where, "question_id", "annotations"):
        found_at, reply = answered.values[number]
        _check_same_image(asking, reply, found_at)
        kinds.setdefault(asking.image, Counter()).update([reply.kind] if reply.kind else [])
        both.append(Example(number, asking.image, reply.texts, asking.text))
  labels = {
    image: tuple(sorted(counts, key=lambda kind: (-counts[kind], kind)))
    for image, counts in kinds.items()
  }
  return [replace(example, labels=labels[example.image]) for example in both], images
