"""Scores of predictions with what they are made of: items, intervals, and what clients get."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from afspl_jax.data.batches import Split
from afspl_jax.data.features import FeatureEncoder
from afspl_jax.evaluation import java_scores
from afspl_jax.evaluation.generate import Prediction
from afspl_jax.evaluation.metrics.bleu import from_counts
from afspl_jax.evaluation.metrics.captions import score_captions
from afspl_jax.evaluation.metrics.clipscore import PREFIX, clip_scores
from afspl_jax.evaluation.metrics.dispersion import Dispersion, disperse
from afspl_jax.evaluation.metrics.intervals import Interval, bootstrap
from afspl_jax.evaluation.metrics.retrieval import recall_at_k
from afspl_jax.evaluation.metrics.vqa import vqa_accuracy

BLEU = ("bleu1", "bleu2", "bleu3", "bleu4")


@dataclasses.dataclass(frozen=True)
class Measured:
  """One score of a set of predictions."""

  value: float
  interval: Interval | None = None  # None: it cannot be made again from its items
  rows: tuple[int, ...] = ()  # the predictions that it is the mean of; () if it is none
  items: Float64[np.ndarray, " items"] | None = None  # their scores


def measure(predictions: Sequence[Prediction], images: Sequence[str]) -> dict[str, Measured]:
  """All scores of `evaluate.score`, digit for digit, with their intervals.

  Args:
    predictions: captions and answers.
    images: the image of each; all that is said of one is drawn together.
  """
  captions = [i for i, p in enumerate(predictions) if not p.question]
  answers = [i for i, p in enumerate(predictions) if p.question]
  single = [i for i in answers if len(predictions[i].references) == 1]
  out: dict[str, Measured] = {}
  if captions:
    found = score_captions(*_texts(predictions, captions))
    shown = [images[i] for i in captions]
    intervals = bootstrap(found.bleu_counts, shown, lambda sums, _: from_counts(sums))
    corpus = found.corpus()
    out |= {
      name: Measured(corpus[name], interval) for name, interval in zip(BLEU, intervals, strict=True)
    }
    out["cider"] = mean_of(found.cider_items, captions, images, found.cider)
    out["rouge_l"] = mean_of(found.rouge_l_items, captions, images, found.rouge_l)
  for name, rows in (("vqa_accuracy", answers), ("exact_match", single)):
    if rows:
      right = vqa_accuracy(*_texts(predictions, rows))
      out[name] = mean_of(right.items, rows, images, right.accuracy)
  return out


def mean_of(
  items: Float64[np.ndarray, " items"],
  rows: Sequence[int],
  images: Sequence[str],
  value: float | None = None,
) -> Measured:
  """A score that is the mean of its items.

  Args:
    items: scores of some predictions.
    rows: which predictions these are.
    images: of all predictions.
    value: the mean, where it is known to the last digit.
  """
  (interval,) = bootstrap(items[:, None], [images[i] for i in rows])
  return Measured(float(items.mean()) if value is None else value, interval, tuple(rows), items)


def clip_measures(
  predictions: Sequence[Prediction], split: Split, rows: Sequence[int], encoder: FeatureEncoder
) -> dict[str, Measured]:
  """CLIPScore and RefCLIPScore of the captions, by the CLIP that the prompter sees with.

  Args:
    predictions: captions and answers.
    split: that they are of.
    rows: the example of each prediction.
    encoder: of the CLIP by which `split` was encoded.
  """
  chosen = [i for i, p in enumerate(predictions) if not p.question]
  if not chosen:
    return {}
  texts, groups = _texts(predictions, chosen)
  said, row_of_said = _distinct(texts)
  human, row_of_human = _distinct([text for group in groups for text in group])
  found = clip_scores(
    encoder.texts([PREFIX + text for text in said], keep=False)[[row_of_said[t] for t in texts]],
    split.joint([rows[i] for i in chosen]),
    encoder.texts([PREFIX + text for text in human]),
    [[row_of_human[text] for text in group] for group in groups],
  )
  images = [split.examples[row].image for row in rows]
  return {name: mean_of(items, chosen, images) for name, items in dataclasses.asdict(found).items()}


def retrieval(split: Split, rows: Sequence[int], encoder: FeatureEncoder) -> dict[str, float]:
  """Recalls between the images and all captions of some examples: of the backbone, not a prompter.

  {} where no example has captions.
  """
  captioned = [row for row in rows if not split.examples[row].question]
  first: dict[str, int] = {}  # example of each image
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


def by_client(
  measured: Mapping[str, Measured], owners: Sequence[str]
) -> tuple[list[dict[str, Any]], dict[str, Dispersion]]:
  """Mean scores of each client's examples, and how they differ from client to client.

  CIDEr's document frequencies stay those of the examples of all, so that clients compare.

  Args:
    measured: of all predictions.
    owners: the client of each prediction.

  Returns:
    A line for each client, None where it has no such examples; and each score over the clients
    that have some.
  """
  names = sorted(set(owners))
  lines: list[dict[str, Any]] = [{"client": n, "examples": owners.count(n)} for n in names]
  spread = {}
  for key, found in measured.items():
    if found.items is None:
      continue
    means = client_means(found.items, found.rows, owners)
    spread[key] = disperse(list(means.values()))
    for line in lines:
      line[key] = means.get(line["client"])
  return lines, spread


def client_means(
  items: Float64[np.ndarray, " items"], rows: Sequence[int], owners: Sequence[str]
) -> dict[str, float]:
  """The mean of each client's items, of those clients that have some.

  Args:
    items: scores of some predictions.
    rows: which predictions these are.
    owners: the client of each prediction, of all.
  """
  of_client: dict[str, list[float]] = {}
  for row, item in zip(rows, items, strict=True):
    of_client.setdefault(owners[row], []).append(float(item))
  return {name: float(np.mean(mine)) for name, mine in of_client.items()}


def _texts(
  predictions: Sequence[Prediction], rows: Sequence[int]
) -> tuple[list[str], list[list[str]]]:
  return [predictions[i].prediction for i in rows], [list(predictions[i].references) for i in rows]


def _distinct(texts: Sequence[str]) -> tuple[list[str], dict[str, int]]:
  """Each text once, and where it is."""
  distinct = sorted(set(texts))
  return distinct, {text: i for i, text in enumerate(distinct)}


def java_measures(
  predictions: Sequence[Prediction], images: Sequence[str], wanted: Sequence[str]
) -> dict[str, Measured]:
  """METEOR and SPICE of the captions, if wanted.

  Raises:
    UserError: what they need is not installed.
  """
  rows = [i for i, p in enumerate(predictions) if not p.question]
  out = {}
  if rows and "meteor" in wanted:
    # Its items' mean is another number: no interval, and no clients' means.
    out["meteor"] = Measured(java_scores.meteor(*_texts(predictions, rows)))
  if rows and "spice" in wanted:
    out["spice"] = mean_of(java_scores.spice(*_texts(predictions, rows)), rows, images)
  return out
