"""Generates texts for the examples of a split, and scores them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from afspl_jax.config.experiment import Eval
from afspl_jax.data.batches import Split
from afspl_jax.evaluation.predictions import Prediction, count_unknown_tokens, write_predictions
from afspl_jax.evaluation.scores import score_predictions
from afspl_jax.models.captioner import Captioner
from afspl_jax.models.decoding import Decoded, Decoding, make_decoder
from afspl_jax.models.huggingface.preprocessing import Tokenizer
from afspl_jax.models.prompter.prompter import SOURCES
from afspl_jax.training.eval_step import make_eval_step
from afspl_jax.training.mesh import check_divides
from afspl_jax.types import Params


class GeneratedText(NamedTuple):
  """A generated text, and the prompts that were used."""

  text: str
  fusion: dict[str, float]  # weight of each prompt source
  prompts: dict[int, float]  # weight of each pool prompt that was selected
  unknown_tokens: int = 0  # generated ids that are not of the tokenizer; the text leaves them out


class Evaluator:
  """Evaluates a prompter, with the compiled programs that this needs.

  Args:
    captioner: the forward passes.
    frozen: T5's leaves, replicated over the mesh.
    tokenizer: T5's tokenizer.
    config: the batch size and the decoding settings.
    mesh: devices that share a batch.
  """

  def __init__(
    self, captioner: Captioner, frozen: Params, tokenizer: Tokenizer, config: Eval, mesh: Mesh
  ):
    check_divides(config.batch_size, mesh, "eval.batch_size")
    self._frozen, self._tokenizer, self._config = frozen, tokenizer, config
    self._loss = make_eval_step(captioner, mesh)
    self._decode = make_decoder(captioner, decoding_settings(config), mesh)

  def predict(
    self,
    params: Params,
    split: Split,
    indices: Sequence[int],
    personalised: bool = False,
    see_image: bool = True,
  ) -> list[Prediction]:
    """Generates a text for each example.

    Examples with equal inputs are decoded once, and those with references of similar length
    together: a batch is decoded until its longest text ends.

    Args:
      params: all leaves of a prompter.
      split: the split that contains the examples.
      indices: positions of the examples in the split.
      personalised: whether the local prompt in `params` is used.
      see_image: False sets the image features to zero, to measure what the text alone gives.
    """
    inputs = split.inputs(indices, see_image)
    _, first, kind = np.unique(inputs, return_index=True, return_inverse=True)
    distinct = [indices[i] for i in first]
    order = np.argsort(split.target_lengths(distinct), kind="stable")
    by_length = [distinct[i] for i in order]
    texts: list[GeneratedText] = []
    for rows, batch in split.in_order(by_length, self._config.batch_size, personalised):
      if not see_image:
        batch = batch._replace(tokens=0 * batch.tokens, image=0 * batch.image)
      decoded = self._decode(params, self._frozen, batch)
      texts += generated_texts(decoded, len(rows), self._tokenizer)
    place = np.argsort(order)[kind]
    out = []
    for row, at in zip(indices, place, strict=True):
      one, (text, *prompts) = split.examples[row], texts[at]
      out.append(Prediction(one.id, text, one.references, one.question, *prompts))
    return out

  def loss(
    self, params: Params, split: Split, indices: Sequence[int], personalised: bool = False
  ) -> float:
    """Mean cross-entropy of each example's first reference, in nats per token.

    With `personalised`, the local prompt in `params` is used.
    """
    total = count = 0.0
    for _, batch in split.in_order(indices, self._config.batch_size, personalised):
      sums = self._loss(params, self._frozen, batch)
      total, count = total + float(sums.nats), count + float(sums.tokens)
    return total / count

  def scores(
    self, params: Params, split: Split, indices: Sequence[int], file: Path | None = None
  ) -> dict[str, float]:
    """Loss, scores of captions and answers, and the number of unknown tokens if there are any.

    Writes the predictions to `file` if it is given.
    """
    predictions = self.predict(params, split, indices)
    if file is not None:
      write_predictions(predictions, file)
    loss = {"loss": self.loss(params, split, indices)}
    return loss | score_predictions(predictions) | count_unknown_tokens(predictions)


def generated_texts(decoded: Decoded, number: int, tokenizer: Tokenizer) -> list[GeneratedText]:
  """The first `number` rows of a decoded batch as texts."""
  ids = np.asarray(decoded.ids)[:number]
  texts, unknown = tokenizer.decode(ids), tokenizer.count_unknown(ids).tolist()
  fusion, pool = np.asarray(decoded.fusion), np.asarray(decoded.pool)
  sources, out = SOURCES[: fusion.shape[1]], []
  for i, text in enumerate(texts):
    weights = {name: round(float(w), 4) for name, w in zip(sources, fusion[i], strict=True)}
    selected = {int(j): round(float(pool[i, j]), 4) for j in np.flatnonzero(pool[i])}
    out.append(GeneratedText(text, weights, selected, unknown[i]))
  return out


def decoding_settings(config: Eval) -> Decoding:
  """The decoding settings of a config.

  Raises:
    UserError: a setting is out of range.
  """
  shared = {field.name: getattr(config, field.name) for field in dataclasses.fields(Decoding)}
  return Decoding(**shared)


def evenly_spread(number: int, wanted: int) -> list[int]:
  """Selects `wanted` of `number` indices, evenly spread and always the same; 0 selects all."""
  if wanted <= 0 or wanted >= number:
    return list(range(number))
  return [i * number // wanted for i in range(wanted)]
