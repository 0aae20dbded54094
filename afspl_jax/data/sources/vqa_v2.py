"""Questions and answers in the two JSON files of VQA v2 (Goyal et al. 2017), with COCO's images."""

import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from afspl_jax.config.experiment import Data
from afspl_jax.data.annotation_files import entries_by_id, files_by_split
from afspl_jax.data.bad_records import BadRecords
from afspl_jax.data.image_files import (
  FileSource,
  ImageFolder,
  data_folder,
  find_image_folder,
  sources_by_split,
)
from afspl_jax.data.records import (
  hashed_split,
  list_entries,
  nested_texts,
  read_json_file,
  splits_served,
  text_field,
)
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


def _read(
  path: Path, answers: Path, folder: Path, bad_records: BadRecords
) -> tuple[list[Example], ImageFolder]:
  content = read_json_file(path)
  entries = list(list_entries(content, "questions", path))
  subtype = str(content.get("data_subtype", ""))
  part = subtype if re.fullmatch(r"[\w-]+", subtype) else ""  # names a folder, which must be inside
  shown = dict.fromkeys(
    str(e["image_id"]) for _, e in entries if isinstance(e, dict) and "image_id" in e
  )
  namings = [[name(number, part) for number in shown] for name in _NAMES]
  root, naming = find_image_folder(folder, ("", part, "images", f"images/{part}"), namings, path)
  images = ImageFolder(root)

  def question(entry: dict[str, Any], where: str) -> tuple[str, str]:
    name = _NAMES[naming](text_field(entry, "image_id", where, number=True), part)
    return images.find(name, where, "image_id"), text_field(entry, "question", where)

  def answer(entry: dict[str, Any], where: str) -> tuple[tuple[str, ...], str]:
    kind = text_field(entry, "answer_type", where) if "answer_type" in entry else ""
    # Most of the 4.4 million answers in train are one of a few texts.
    return tuple(map(sys.intern, nested_texts(entry, "answers", "answer", where))), kind

  asked = entries_by_id(entries, "question_id", question, bad_records)
  given = list_entries(read_json_file(answers), "annotations", answers)
  answered = entries_by_id(given, "question_id", answer, bad_records)
  for number, (where, _) in answered.values.items():
    with bad_records.skipping():
      asked.knows(number, where, "question_id", "questions")
  kinds: dict[str, Counter[str]] = {}
  both = []
  for number, (where, (image, words)) in asked.values.items():
    with bad_records.skipping():
      if answered.knows(number, where, "question_id", "annotations"):
        texts, kind = answered.values[number][1]
        kinds.setdefault(image, Counter()).update([kind] if kind else [])
        both.append(Example(id=number, image=image, references=texts, question=words))
  labels = {
    image: tuple(sorted(counts, key=lambda kind: (-counts[kind], kind)))
    for image, counts in kinds.items()
  }
  return [replace(example, labels=labels[example.image]) for example in both], images
