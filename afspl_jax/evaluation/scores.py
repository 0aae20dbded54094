"""Scores of captions and answers: values, confidence intervals, and means for each client."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64

from afspl_jax.evaluation.metrics.bleu import bleu_from_counts
from afspl_jax.evaluation.metrics.captions import score_captions
from afspl_jax.evaluation.metrics.dispersion import Dispersion, measure_dispersion
from afspl_jax.evaluation.metrics.intervals import Interval, bootstrap
from afspl_jax.evaluation.metrics.vqa import score_answers

BLEU = ("bleu1", "bleu2", "bleu3", "bleu4")
ANSWERS = ("exact_match", "vqa_accuracy")  # of questions with one answer, and with several


@runtime_checkable
class ScorableText(Protocol):
  """A text with its references; it is an answer if it has a question, otherwise a caption."""

  @property
  def prediction(self) -> str:
    """The generated text."""

  @property
  def references(self) -> Sequence[str]:
    """The texts that it is compared with."""

  @property
  def question(self) -> str:
    """The question; "" for a caption."""


class TextWithReferences(NamedTuple):
  """The smallest scorable text."""

  prediction: str
  references: Sequence[str]
  question: str = ""


@dataclasses.dataclass(frozen=True)
class Score:
  """One score of a set of predictions."""

  value: float
  interval: Interval | None = None  # None if the score has no interval
  rows: tuple[int, ...] = ()  # indices of the predictions that are averaged; () if it is no mean
  items: Float64[np.ndarray, " items"] | None = None  # the score of each of these predictions


def score_predictions(predictions: Iterable[ScorableText]) -> dict[str, float]:
  """Scores captions as captions and answers as answers.

  Returns:
    `bleu1` to `bleu4`, `cider` and `rouge_l` over the captions; `vqa_accuracy` over the answers to
    questions with several references, and `exact_match` over those with one. A score without
    predictions is absent.
  """
  predictions = list(predictions)
  captions, answers = _by_task(predictions)
  scores: dict[str, float] = {}
  if captions:
    scores |= score_captions(*_texts(predictions, captions)).corpus()
  answered = score_answers(*_texts(predictions, answers))
  return scores | {name: found.mean for name, (_, found) in answered.items()}


def score_with_intervals(
  predictions: Sequence[ScorableText], images: Sequence[str]
) -> dict[str, Score]:
  """The scores of `score_predictions`, equal to the last digit, with 95 % confidence intervals.

  Args:
    predictions: captions and answers.
    images: the image of each prediction; the bootstrap resamples whole images.
  """
  captions, answers = _by_task(predictions)
  out: dict[str, Score] = {}
  if captions:
    found = score_captions(*_texts(predictions, captions))
    of_captions = [images[i] for i in captions]
    intervals = bootstrap(found.bleu_counts, of_captions, lambda sums, _: bleu_from_counts(sums))
    corpus = found.corpus()
    out |= {
      name: Score(corpus[name], interval) for name, interval in zip(BLEU, intervals, strict=True)
    }
    out["cider"] = mean_score(found.cider_items, captions, images, found.cider)
    out["rouge_l"] = mean_score(found.rouge_l_items, captions, images, found.rouge_l)
  for name, (index, correct) in score_answers(*_texts(predictions, answers)).items():
    out[name] = mean_score(correct.items, [answers[i] for i in index], images, correct.mean)
  return out


def mean_score(
  items: Float64[np.ndarray, " items"],
  rows: Sequence[int],
  images: Sequence[str],
  value: float | None = None,
) -> Score:
  """A score that is the mean of its items.

  Args:
    items: scores of some predictions.
    rows: the indices of these predictions.
    images: the image of every prediction.
    value: the mean, if it is already known to the last digit.
  """
  (interval,) = bootstrap(items[:, None], [images[i] for i in rows])
  return Score(float(items.mean()) if value is None else value, interval, tuple(rows), items)


def scores_by_client(
  scores: Mapping[str, Score], clients: Sequence[str]
) -> tuple[list[dict[str, Any]], dict[str, Dispersion]]:
  """Mean scores of each client's examples, and their dispersion over the clients.

  CIDEr uses the document frequencies of all examples, so that clients are comparable.

  Args:
    scores: scores of all predictions.
    clients: the client of each prediction.

  Returns:
    One line for each client, with None for a score of which it has no examples; and the
    dispersion of each score over the clients that have it.
  """
  names = sorted(set(clients))
  lines: list[dict[str, Any]] = [{"client": n, "examples": clients.count(n)} for n in names]
  dispersion = {}
  for key, score in scores.items():
    if score.items is None:
      continue
    means = client_means(score.items, score.rows, clients)
    dispersion[key] = measure_dispersion(list(means.values()))
    for line in lines:
      line[key] = means.get(line["client"])
  return lines, dispersion


def client_means(
  items: Float64[np.ndarray, " items"], rows: Sequence[int], clients: Sequence[str]
) -> dict[str, float]:
  """The mean over each client's items, for every client that has some.

  Args:
    items: scores of some predictions.
    rows: the indices of these predictions.
    clients: the client of every prediction.
  """
  of_client: dict[str, list[float]] = {}
  for row, item in zip(rows, items, strict=True):
    of_client.setdefault(clients[row], []).append(float(item))
  return {name: float(np.mean(values)) for name, values in of_client.items()}


def _by_task(predictions: Sequence[ScorableText]) -> tuple[list[int], list[int]]:
  """Indices of the captions, and of the answers."""
  captions = [i for i, p in enumerate(predictions) if not p.question]
  return captions, [i for i, p in enumerate(predictions) if p.question]


def _texts(
  predictions: Sequence[ScorableText], rows: Sequence[int]
) -> tuple[list[str], list[Sequence[str]]]:
  return [predictions[i].prediction for i in rows], [predictions[i].references for i in rows]
