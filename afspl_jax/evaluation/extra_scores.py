"""Scores that need another model or program: CLIPScore, retrieval, METEOR and SPICE."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from afspl_jax.data.batches import Split
from afspl_jax.data.features import FeatureEncoder
from afspl_jax.evaluation.metrics import java_metrics
from afspl_jax.evaluation.metrics.clipscore import PREFIX, clip_scores
from afspl_jax.evaluation.metrics.retrieval import recall_at_k
from afspl_jax.evaluation.predictions import Prediction
from afspl_jax.evaluation.scores import Score, mean_score


def clipscore_of_captions(
  predictions: Sequence[Prediction], split: Split, rows: Sequence[int], encoder: FeatureEncoder
) -> dict[str, Score]:
  """CLIPScore and RefCLIPScore of the captions, by the CLIP that the prompter uses.

  Args:
    predictions: captions and answers.
    split: the split that contains the examples.
    rows: the example of each prediction.
    encoder: the CLIP that encoded `split`.
  """
  captions = [i for i, p in enumerate(predictions) if not p.question]
  if not captions:
    return {}
  texts = [predictions[i].prediction for i in captions]
  groups = [predictions[i].references for i in captions]
  distinct, row_of = _distinct(texts)
  references, row_of_reference = _distinct([text for group in groups for text in group])
  scores = clip_scores(
    encoder.texts([PREFIX + text for text in distinct], keep=False)[[row_of[t] for t in texts]],
    split.joint([rows[i] for i in captions]),
    encoder.texts([PREFIX + text for text in references]),
    [[row_of_reference[text] for text in group] for group in groups],
  )
  images = [split.examples[row].image for row in rows]
  return {
    name: mean_score(items, captions, images) for name, items in dataclasses.asdict(scores).items()
  }


def retrieval_scores(
  split: Split, rows: Sequence[int], encoder: FeatureEncoder
) -> dict[str, float]:
  """Retrieval recall between images and their captions: a score of CLIP, not of a prompter.

  Returns {} if no example has captions.
  """
  captioned = [row for row in rows if not split.examples[row].question]
  first: dict[str, int] = {}  # the first example of each image
  for row in captioned:
    first.setdefault(split.examples[row].image, row)
  position = {image: i for i, image in enumerate(first)}
  pairs = [
    (text, position[split.examples[row].image])
    for row in captioned
    for text in split.examples[row].references
  ]
  if not pairs:
    return {}
  texts, row_of = _distinct([text for text, _ in pairs])
  features = encoder.texts(texts)[[row_of[text] for text, _ in pairs]]
  return recall_at_k(split.joint(list(first.values())), features, np.array([i for _, i in pairs]))


def java_scores(
  predictions: Sequence[Prediction], images: Sequence[str], wanted: Sequence[str]
) -> dict[str, Score]:
  """METEOR and SPICE of the captions.

  Args:
    predictions: captions and answers.
    images: the image of each prediction.
    wanted: names of scores; only "meteor" and "spice" matter here.

  Raises:
    UserError: a program that they need is not installed.
  """
  rows = [i for i, p in enumerate(predictions) if not p.question]
  texts = [predictions[i].prediction for i in rows]
  references = [predictions[i].references for i in rows]
  out = {}
  if rows and "meteor" in wanted:
    # The mean of its items is a different number: no interval and no means of clients.
    out["meteor"] = Score(java_metrics.meteor(texts, references))
  if rows and "spice" in wanted:
    out["spice"] = mean_score(java_metrics.spice(texts, references), rows, images)
  return out


def _distinct(texts: Sequence[str]) -> tuple[list[str], dict[str, int]]:
  """The distinct texts, and the position of each."""
  distinct = sorted(set(texts))
  return distinct, {text: i for i, text in enumerate(distinct)}
