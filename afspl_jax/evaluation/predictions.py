"""What a model generated for each example, and the file of it in a run's folder."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from afspl_jax.storage.atomic_files import write_text


class Prediction(NamedTuple):
  """The text generated for one example, with its references and the prompts that were used."""

  id: str
  prediction: str
  references: tuple[str, ...]
  question: str  # "" for a caption
  fusion: dict[str, float]  # weight of each prompt source
  prompts: dict[int, float]  # weight of each pool prompt that was selected
  unknown_tokens: int = 0  # generated ids that are not of the tokenizer; the text leaves them out


def write_predictions(predictions: Sequence[Prediction], file: Path) -> None:
  """Writes one JSON line for each prediction, atomically."""
  lines = []
  for prediction in predictions:
    line: dict[str, Any] = prediction._asdict()
    if not prediction.question:
      del line["question"]
    if not prediction.unknown_tokens:
      del line["unknown_tokens"]
    lines.append(json.dumps(line, ensure_ascii=False) + "\n")
  write_text(file, "".join(lines))


def count_unknown_tokens(predictions: Sequence[Prediction]) -> dict[str, float]:
  """The number of generated ids that are not of the tokenizer, if there are any.

  A model may have a larger vocabulary than its tokenizer. One that generates such ids is not the
  tokenizer's, or its prompter is of no use.

  Returns:
    `unknown_tokens`, or nothing where there are none.
  """
  number = sum(prediction.unknown_tokens for prediction in predictions)
  return {"unknown_tokens": float(number)} if number else {}
