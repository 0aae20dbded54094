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


def write_predictions(predictions: Sequence[Prediction], file: Path) -> None:
  """Writes one JSON line for each prediction, atomically."""
  lines = []
  for prediction in predictions:
    line: dict[str, Any] = prediction._asdict()
    if not prediction.question:
      del line["question"]
    lines.append(json.dumps(line, ensure_ascii=False) + "\n")
  write_text(file, "".join(lines))
