"""Questions and answers in the two JSON files of VQA v2 (Goyal et al. 2017), with COCO's images."""

import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from afspl_jax.config.experiment import Data
from afspl_jax.data.annotation_files import by_name, keyed
from afspl_jax.data.bad_records import Faults
from afspl_jax.data.image_files import FileSource, ImageFolder, base, by_split, home
from afspl_jax.data.records import members, read_json, served, split_of, text, texts_of
from afspl_jax.errors import UserError
from afspl_jax.types import Example

QUESTIONS, ANNOTATIONS = "*questions.json", "*annotations.json"
_HOW = """\
Put v2_OpenEnded_mscoco_train2014_questions.json and v2_mscoco_train2014_annotations.json, and
  those of val2014, there, and COCO's images beside them in train2014/ and val2014/"""

# How COCO's files are called: in 2014, in 2017, and by others.
_NAMES: tuple[Callable[[str, str], str], ...] = (
  lambda number, part: f"COCO_{part}_{number:0>12}.jpg",
  lambda number, part: f"{number:0>12}.jpg",
  lambda number, part: f"{number}.jpg",
  lambda number, part: f"{number}.png",
)


def open_splits(splits: Sequence[str], data: Data, faults: Faults) -> dict[str, FileSource]:
  """Opens splits; VQA's own test part has no answers, and so val serves validation and test.

  All ten answers of a question are kept, as equal ones weigh in its accuracy. An image's labels are
  the types of its questions' answers, the most frequent first.

  Args:
    splits: their names.
    data: `dir` holds the files.
    faults: what may be left out.

  Raises:
    MissingData: they are not there.
    UserError: one is of another form, or more records are malformed than allowed.
  """
  folder = base(data.dir)
  annotations = by_name(folder, ANNOTATIONS, _HOW)
  questions = by_name(folder, QUESTIONS, _HOW, of=annotations)
  out: dict[str, FileSource] = {}
  for part, among in served(annotations).items():
    if part not in questions:
      raise UserError(
        f"{annotations[part]}: expected its questions in a file {QUESTIONS} of {part}; got"
        f" {', '.join(path.name for path in questions.values())}. Put it beside."
      )
    if wanted := [split for split in splits if split in among]:
      found, images = _read(questions[part], annotations[part], folder, faults)
      out |= by_split(wanted, ((split_of(e.image, among), e) for e in found), images)
  return {split: out[split] for split in splits if split in out}


def _read(
  path: Path, answers: Path, folder: Path, faults: Faults
) -> tuple[list[Example], ImageFolder]:
  content = read_json(path)
  entries = list(members(content, "questions", path))
  said = str(content.get("data_subtype", ""))
  part = said if re.fullmatch(r"[\w-]+", said) else ""  # names a folder, and must not lead out
  shown = dict.fromkeys(
    str(e["image_id"]) for _, e in entries if isinstance(e, dict) and "image_id" in e
  )
  namings = [[name(number, part) for number in shown] for name in _NAMES]
  root, naming = home(folder, ("", part, "images", f"images/{part}"), namings, path)
  images = ImageFolder(root)

  def question(entry: dict[str, Any], where: str) -> tuple[str, str]:
    name = _NAMES[naming](text(entry, "image_id", where, number=True), part)
    return images.find(name, where, "image_id"), text(entry, "question", where)

  def answer(entry: dict[str, Any], where: str) -> tuple[tuple[str, ...], str]:
    kind = text(entry, "answer_type", where) if "answer_type" in entry else ""
    # Of 4.4 million answers in train most are the same few.
    return tuple(map(sys.intern, texts_of(entry, "answers", "answer", where))), kind

  asked = keyed(entries, "question_id", question, faults)
  given = members(read_json(answers), "annotations", answers)
  answered = keyed(given, "question_id", answer, faults)
  for number, (where, _) in answered.values.items():
    with faults.skipping():
      asked.knows(number, where, "question_id", "questions")
  kinds: dict[str, Counter[str]] = {}
  both = []
  for number, (where, (image, words)) in asked.values.items():
    with faults.skipping():
      if answered.knows(number, where, "question_id", "annotations"):
        texts, kind = answered.values[number][1]
        kinds.setdefault(image, Counter()).update([kind] if kind else [])
        both.append(Example(id=number, image=image, references=texts, question=words))
  labels = {
    image: tuple(sorted(counts, key=lambda kind: (-counts[kind], kind)))
    for image, counts in kinds.items()
  }
  return [replace(example, labels=labels[example.image]) for example in both], images
