"""Predictions and scores of personalised models: each client with its own local leaves."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from afspl_jax.evaluation.generate import Evaluator
from afspl_jax.evaluation.metrics.captions import score_captions
from afspl_jax.evaluation.metrics.vqa import score_answers
from afspl_jax.evaluation.predictions import Prediction
from afspl_jax.evaluation.scores import ScorableText, client_means
from afspl_jax.runs.fine_tuning import personal_params
from afspl_jax.runs.prepare import Setup
from afspl_jax.types import Params


def personalised_predictions(
  setup: Setup, shared: Params, round: int, split: str, rows: Sequence[int], clients: Sequence[str]
) -> dict[int, Prediction]:
  """Predictions of each client's personalised model for its own examples among `rows`.

  Args:
    setup: the setup of a run whose clients are here.
    shared: the server's leaves after the round (NumPy).
    round: the round whose local leaves are used.
    split: the split that contains the examples.
    rows: positions in the split.
    clients: names of the clients that predict.

  Returns:
    The predictions by row; rows of other clients are absent.
  """
  names = sorted(setup.clients["train"])
  params = lambda client: personal_params(setup, shared, names.index(client), round)  # noqa: E731
  return predictions_of_sites(setup, setup.evaluator, params, split, rows, clients)


def predictions_of_sites(
  setup: Setup,
  evaluator: Evaluator,
  params: Callable[[str], Params],
  split: str,
  rows: Sequence[int],
  clients: Sequence[str],
) -> dict[int, Prediction]:
  """Predictions of a model of each client for its own examples among `rows`.

  Args:
    setup: the setup of a run whose clients are here.
    evaluator: for these models.
    params: the model of a client, by its name.
    split: the split that contains the examples.
    rows: positions in the split.
    clients: names of the clients that predict.

  Returns:
    The predictions by row; rows of other clients are absent.
  """
  by_row: dict[int, Prediction] = {}
  for client in clients:
    held = set(setup.clients[split][client].tolist())
    its_rows = [row for row in rows if row in held]
    found = evaluator.predict(params(client), setup.splits[split], its_rows, personalised=True)
    by_row.update(zip(its_rows, found, strict=True))
  return by_row


def site_scores(
  clients: Sequence[str], examples: Sequence[ScorableText], texts: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
  """Mean scores of each client's examples by every model, as sites.jsonl holds them.

  CIDEr uses the document frequencies of all clients' examples, so that clients are comparable.

  Args:
    clients: the client of each example.
    examples: give the questions and references.
    texts: by model, its text for each example.
  """
  lines = {name: {"client": name, "examples": clients.count(name)} for name in sorted(set(clients))}
  captions, questions = (
    [i for i, p in enumerate(examples) if bool(p.question) == answered]
    for answered in (False, True)
  )
  for model, its_texts in texts.items():
    scored: dict[str, tuple[list[int], Float64[np.ndarray, " items"]]] = {}
    if captions:
      found = score_captions(*_texts(its_texts, examples, captions))
      scored["cider"] = captions, found.cider_items
    for key, (index, answers) in score_answers(*_texts(its_texts, examples, questions)).items():
      scored[key] = [questions[i] for i in index], answers.items
    for key, (index, items) in scored.items():
      means = client_means(items, index, clients)
      for name, line in lines.items():
        line[f"{model}_{key}"] = means.get(name)
  return list(lines.values())


def _texts(
  texts: Sequence[str], examples: Sequence[ScorableText], rows: Sequence[int]
) -> tuple[list[str], list[Sequence[str]]]:
  return [texts[i] for i in rows], [examples[i].references for i in rows]
