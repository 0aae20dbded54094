"""Scores a JSON-lines file of predictions, such as a run writes."""

import codecs
import os
import reprlib
from pathlib import Path

from afspl_jax.data.records import UniqueValues, text_field
from afspl_jax.evaluation.scores import TextWithReferences, score_predictions
from afspl_jax.storage.json_text import parse_json
from afspl_jax.storage.text_check import is_text

_FORM = '{"prediction": "a dog", "references": ["a brown dog", "a dog runs"]}'


def _parse(line: bytes, where: str, ids: UniqueValues) -> TextWithReferences:
  try:
    record = parse_json(line.decode("utf-8"))
  except UnicodeDecodeError as error:
    raise ValueError(
      f"{where}: expected UTF-8; got byte 0x{line[error.start]:02x} at byte {error.start + 1}. "
      "Save the file as UTF-8."
    ) from error
  except ValueError as error:
    raise ValueError(
      f"{where}: expected one JSON object per line; got {_show(line)}: {error}. Write lines like"
      f" {_FORM}."
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
      f'{where}: "references" must have at least one reference; got []. '
      "Add one, or remove the line."
    )
  if not all(map(is_text, references)):
    raise ValueError(
      f'{where}: "references" must have no blank text and no NUL; got {_show(references)}. '
      "Remove it, or remove the line."
    )
  question = record.get("question", "")
  if not isinstance(question, str) or (question and not is_text(question)):
    raise ValueError(
      f'{where}: "question" must be a text in quotes, not blank; got {_show(question)}. Correct it.'
    )
  if record.get("id") is not None:
    ids.add(text_field(record, "id", where, number=True), where)
  return TextWithReferences(prediction, references, question)


def _show(value: object) -> str:
  """A value of the file, shortened for an error message."""
  return reprlib.repr(value)


def score_file(path: str | os.PathLike[str]) -> dict[str, float]:
  """Scores a JSON-lines file.

  Args:
    path: a UTF-8 file. Each line is an object with `prediction`, a string, and `references`, a
      non-empty list of strings, none of them blank. A line with a `question` is an answer; all
      others are captions. A line may have an `id`, which no other line has. Other keys and blank
      lines are ignored.

  Returns:
    The scores of `score_predictions`.

  Raises:
    ValueError: the file is empty, or a line has another form; the message names file and line.
    OSError: the file cannot be read.
  """
  lines = Path(path).read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
  ids = UniqueValues("id")
  items = [
    _parse(line, f"{os.fspath(path)}:{number}", ids)
    for number, line in enumerate(lines, start=1)
    if line.strip()
  ]
  if not items:
    raise ValueError(
      f"{os.fspath(path)}:1: expected at least one line; got an empty file. "
      f"Write lines like {_FORM}."
    )
  return score_predictions(items)
