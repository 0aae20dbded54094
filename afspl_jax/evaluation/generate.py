"""From a split to predictions to scores."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from afspl_jax.config.experiment import Eval
from afspl_jax.data.batches import Split
from afspl_jax.evaluation.score_file import Scored, score_predictions
from afspl_jax.models.captioner import Captioner
from afspl_jax.models.decoding import Decoded, Decoding, make_decoder
from afspl_jax.models.huggingface.preprocessing import Tokenizer
from afspl_jax.models.prompter.prompter import SOURCES
from afspl_jax.storage.atomic_files import write_text
from afspl_jax.training.train_step import check_divides, make_eval_step
from afspl_jax.types import Params


class Generated(NamedTuple):
  """A text, and how it was prompted."""

  text: str
  fusion: dict[str, float]  # weight of each prompt source
  prompts: dict[int, float]  # pool prompts chosen, with their weights


class Prediction(NamedTuple):
  """What was said of one example, and how it was prompted."""

  id: str
  prediction: str
  references: tuple[str, ...]
  question: str
  fusion: dict[str, float]  # weight of each prompt source
  prompts: dict[int, float]  # pool prompts chosen, with their weights


class Evaluator:
  """Scores a prompter, with the compiled programs it needs.

  Args:
    captioner: the forward passes.
    frozen: T5's leaves, replicated over the mesh.
    tokenizer: T5's.
    config: batch size, and how texts are generated.
    mesh: devices that share a batch.
  """

  def __init__(
    self, captioner: Captioner, frozen: Params, tokenizer: Tokenizer, config: Eval, mesh: Mesh
  ):
    check_divides(config.batch_size, mesh, "eval.batch_size")
    self._frozen, self._tokenizer, self._config = frozen, tokenizer, config
    self._loss = make_eval_step(captioner, mesh)
    self._decode = make_decoder(captioner, decoding(config), mesh)

  def predict(
    self,
    params: Params,
    split: Split,
    indices: Sequence[int],
    personal: bool = False,
    see_image: bool = True,
  ) -> list[Prediction]:
    """Generates a text for each example.

    Args:
      params: all of a prompter's leaves.
      split: the examples.
      indices: which of them.
      personal: whether the local prompt in `params` is used.
      see_image: False zeroes the image's features, to see what is known without them.
    """
    out = []
    for rows, batch in split.in_order(indices, self._config.batch_size, personal):
      if not see_image:
        batch = batch._replace(tokens=0 * batch.tokens, image=0 * batch.image)
      decoded = self._decode(params, self._frozen, batch)
      for row, said in zip(rows, generated(decoded, len(rows), self._tokenizer), strict=True):
        example = split.examples[row]
        out.append(
          Prediction(
            example.id,
            said.text,
            example.references,
            example.question,
            said.fusion,
            said.prompts,
          )
        )
    return out

  def loss(self, params: Params, split: Split, indices: Sequence[int]) -> float:
    """Cross-entropy of each example's first reference, in nats a token."""
    total = count = 0.0
    for _, batch in split.in_order(indices, self._config.batch_size):
      sums = self._loss(params, self._frozen, batch)
      total, count = total + float(sums.nats), count + float(sums.tokens)
    return total / count

  def scores(
    self, params: Params, split: Split, indices: Sequence[int], file: Path | None = None
  ) -> dict[str, float]:
    """Loss, caption scores and VQA accuracy; writes the predictions to `file` if given."""
    predictions = self.predict(params, split, indices)
    if file is not None:
      write(predictions, file)
    return {"loss": self.loss(params, split, indices), **score(predictions)}


def generated(decoded: Decoded, number: int, tokenizer: Tokenizer) -> list[Generated]:
  """The first `number` rows of a decoded batch, for people."""
  texts = tokenizer.decode(np.asarray(decoded.ids)[:number])
  fusion, pool = np.asarray(decoded.fusion), np.asarray(decoded.pool)
  sources, out = SOURCES[: fusion.shape[1]], []
  for i, text in enumerate(texts):
    weights = {name: round(float(w), 4) for name, w in zip(sources, fusion[i], strict=True)}
    chosen = {int(j): round(float(pool[i, j]), 4) for j in np.flatnonzero(pool[i])}
    out.append(Generated(text, weights, chosen))
  return out


def decoding(config: Eval) -> Decoding:
  """How texts are generated.

  Raises:
    UserError: a setting that no text can be generated with.
  """
  shared = {field.name: getattr(config, field.name) for field in dataclasses.fields(Decoding)}
  return Decoding(**shared)


def score(predictions: Sequence[Prediction]) -> dict[str, float]:
  """Caption scores and VQA accuracy."""
  return score_predictions(
    Scored(p.prediction, list(p.references), p.question) for p in predictions
  )


def spread(number: int, wanted: int) -> list[int]:
  """`wanted` indices (0: all) spread evenly over a split, the same every time."""
  if wanted <= 0 or wanted >= number:
    return list(range(number))
  return [i * number // wanted for i in range(wanted)]


def write(predictions: Sequence[Prediction], file: Path) -> None:
  """Writes a line of JSON for each prediction, all or nothing."""
  lines = []
  for prediction in predictions:
    line: dict[str, Any] = prediction._asdict()
    if not prediction.question:
      del line["question"]
    lines.append(json.dumps(line, ensure_ascii=False) + "\n")
  write_text(file, "".join(lines))
