"""Scores of captions in a JSON-lines file, as a run writes under `predictions/`."""

import codecs
import json
import os
import reprlib
from pathlib import Path

from afspl_jax.metrics.captions import score_captions

_FORM = '{"prediction": "a dog", "references": ["a brown dog", "a dog runs"]}'


def _parse(line: bytes, where: str) -> tuple[str, list[str]]:
  """The prediction and the references of one line."""
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
  return prediction, references


def _show(value: object) -> str:
  """A value from the file, short enough for an error message."""
  return reprlib.repr(value)


def score_file(path: str | os.PathLike[str]) -> dict[str, float]:
  """Scores the captions of a JSON-lines file.

  Args:
    path: A UTF-8 file. Each line is an object with `prediction`, a string, and `references`, a
      non-empty list of strings; other keys are ignored, and so are blank lines.

  Returns:
    `bleu1` to `bleu4`, `cider` and `rouge_l` of all lines together.

  Raises:
    ValueError: If the file has no captions or a line is not of this form; names file and line.
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
  predictions, references = zip(*items, strict=True)
  return score_captions(predictions, references).corpus()
