"""Scores of predictions, from memory or from a JSON-lines file as a run writes it."""

import codecs
import json
import os
import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from afspl_jax.evaluation.metrics.captions import score_captions
from afspl_jax.evaluation.metrics.vqa import exact_match, vqa_accuracy

_FORM = '{"prediction": "a dog", "references": ["a brown dog", "a dog runs"]}'


class Scored(NamedTuple):
  """A text with what it is compared with; an answer if there is a question, else a caption."""

  prediction: str
  references: list[str]
  question: str = ""


def score_predictions(items: Iterable[Scored]) -> dict[str, float]:
  """Scores captions as captions and answers as answers.

  Returns:
    `bleu1` to `bleu4`, `cider` and `rouge_l` of all captions together if there are any, and
    `vqa_accuracy` of all answers if there are any; `exact_match` of answers with one reference.
  """
  items = list(items)
  captions = [item for item in items if not item.question]
  answers = [item for item in items if item.question]
  scores: dict[str, float] = {}
  if captions:
    texts, references, _ = zip(*captions, strict=True)
    scores |= score_captions(texts, references).corpus()
  if answers:
    texts, references, _ = zip(*answers, strict=True)
    scores["vqa_accuracy"] = vqa_accuracy(texts, references).accuracy
  if single := [item for item in answers if len(item.references) == 1]:
    scores["exact_match"] = exact_match(
      [item.prediction for item in single], [item.references[0] for item in single]
    )
  return scores


def _parse(line: bytes, where: str) -> Scored:
  try:
    record = json.loads(line.decode("utf-8"))
  except UnicodeDecodeError as error:
    raise ValueError(
      f"{where}: expected UTF-8; got byte 0x{line[error.start]:02x} at byte {error.start + 1}. "
      "Save the file as UTF-8."
    ) from error
  except (ValueError, RecursionError) as error:  # ValueError: also integers of too many digits
    raise ValueError(
      f"{where}: expected one JSON object per line; got {_show(line)}. Write lines like {_FORM}."
    ) from error
  if not isinstance(record, dict):
    raise ValueError(
      f"{where}: expected a JSON object; got {_show(record)}. Write lines like {_FORM}."
    )
  for key in ("prediction", "references"):
    if key not in record:
      raise ValueError(
        f'{where}: expected the keys "prediction" and "references"; got {_show(sorted(record))}. '
        f'Add "{key}" to the line.'
      )
  prediction, references = record["prediction"], record["references"]
  if not isinstance(prediction, str):
    raise ValueError(
      f'{where}: "prediction" must be a string; got {_show(prediction)}. Put it in quotes.'
    )
  if not isinstance(references, list) or not all(isinstance(text, str) for text in references):
    raise ValueError(
      f'{where}: "references" must be a list of strings; got {_show(references)}. '
      'Write ["..."] even for one reference.'
    )
  if not references:
    raise ValueError(
      f'{where}: "references" must name at least one reference; got []. '
      "Add one, or remove the line."
    )
  question = record.get("question", "")
  if not isinstance(question, str):
    raise ValueError(
      f'{where}: "question" must be a string; got {_show(question)}. Put it in quotes.'
    )
  return Scored(prediction, references, question)


def _show(value: object) -> str:
  """A value from the file, short enough for an error message."""
  return reprlib.repr(value)


def score_file(path: str | os.PathLike[str]) -> dict[str, float]:
  """Scores a JSON-lines file.

  Args:
    path: A UTF-8 file. Each line is an object with `prediction`, a string, and `references`, a
      non-empty list of strings. A line with a `question` is an answer to it, all others are
      captions. Other keys are ignored, and so are blank lines.

  Returns:
    As `score_predictions`.

  Raises:
    ValueError: If the file has no lines or a line is not of this form; names file and line.
    OSError: If the file cannot be read.
  """
  lines = Path(path).read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
  items = [
    _parse(line, f"{os.fspath(path)}:{number}")
    for number, line in enumerate(lines, start=1)
    if line.strip()
  ]
  if not items:
    raise ValueError(
      f"{os.fspath(path)}:1: expected at least one line; got an empty file. "
      f"Write lines like {_FORM}."
    )
  return score_predictions(items)
