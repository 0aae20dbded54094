"""Scores a finished run on the test split: the global model, personalised models, and controls."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from afspl_jax.config.experiment import Experiment
from afspl_jax.evaluation.generate import evenly_spread
from afspl_jax.evaluation.predictions import Prediction, count_unknown_tokens, write_predictions
from afspl_jax.evaluation.scores import score_predictions
from afspl_jax.federation.client.ditto import DittoTrainer
from afspl_jax.federation.client.local_trainer import LocalTrainer
from afspl_jax.runs.fine_tuning import personal_params
from afspl_jax.runs.newcomers import train_newcomers
from afspl_jax.runs.prepare import Setup
from afspl_jax.runs.scoring.personalised import personalised_predictions, predictions_of_sites
from afspl_jax.runs.scoring.site_table import FILE as SITE_TABLE
from afspl_jax.runs.scoring.site_table import write_site_table
from afspl_jax.storage.run_folder import RunFolder
from afspl_jax.storage.run_lines import training_bytes
from afspl_jax.types import Params

Scores = dict[str, Any]


def score_finished_run(
  setup: Setup, folder: RunFolder, shared: Params, progress: Callable[..., tqdm] = tqdm
) -> dict[str, Scores]:
  """Adds the missing lines of the test split to metrics.jsonl, and returns all of them by view.

  If clients share nothing, there is no global model: only `test_personal` and
  `test_personal_common` are scored. If clients are on other hosts, only the first four are.
  Otherwise sites.jsonl has the scores of each client.

  - `test`: the global model.
  - `test_common`: the global model on the examples of `test_personal_common`.
  - `test_blind`: the global model without the image.
  - `test_mean_fusion`: the global model with the mean fusion weights for every sample; `changed`
    is the fraction of texts that differ.
  - `test_personal`: each example by the personalised model of its client, for honest clients that
    took part.
  - `test_personal_common`: the mean over the same clients, each on the same examples of all
    clients.
  - `test_alone`, `test_pooled`: the examples of `test_personal` by the baselines of `fed.compare`,
    the model that the example's client trained alone, and the one of all clients' data.
  - `newcomer_global`, `newcomer_before`, `newcomer_after`: examples of clients that took no part,
    by the global model, by a personalised model whose local prompt is matched in the pool, and
    by the copy of the global model that a newcomer trained (newcomers.py).

  Args:
    setup: the setup of the run.
    folder: the run folder.
    shared: the shared leaves to score (NumPy).
    progress: makes the progress bar.
  """
  evaluation = FinalEvaluation(setup, folder.path / "predictions", shared)
  views = evaluation.views()
  done = {line["split"] for line in folder.metrics()}
  trained = [line for line in folder.metrics() if line["split"] == "train"]
  last = trained[-1] if trained else {"round": 0, "clients": 0}  # a budget may end a run early
  if views.keys() - done:  # before the first of them: a run that is killed writes it again
    (folder.path / SITE_TABLE).unlink(missing_ok=True)
  for name, scores in progress(views.items(), desc="test", unit="view"):
    if name not in done:
      begin = time.perf_counter()
      line = {"round": last["round"], "split": name, **scores()}
      if name == next(iter(views)):
        line["bytes_up"], line["bytes_down"] = training_bytes(folder.metrics())
        line["clients"] = last["clients"]
        line |= {"epsilon": last["epsilon"]} if "epsilon" in last else {}
      folder.append_metrics(line | {"seconds": round(time.perf_counter() - begin, 3)})
  if "test_personal" in views and not (folder.path / SITE_TABLE).exists():
    write_site_table(folder.path, views.keys(), evaluation.client_of_id())
  return {line["split"]: line for line in folder.metrics() if line["split"] in views}


def personalises(config: Experiment) -> bool:
  """Whether the model that a site uses is another than the global one."""
  return config.prompter.local or bool(
    config.fed.local_leaves or config.fed.finetune or config.fed.ditto
  )


class FinalEvaluation:
  """The views of a finished run, each a function that returns scores.

  Args:
    setup: the setup of the run.
    files: folder of the predictions.
    shared: the shared leaves to score (NumPy).
  """

  def __init__(self, setup: Setup, files: Path, shared: Params):
    self._setup, self._files, self._shared = setup, files, shared
    self._config, self._split = setup.config, setup.splits["test"]
    self._rows = evenly_spread(len(self._split), self._config.eval.test_examples)
    self._names = sorted(setup.clients.get("train", ()))
    files.mkdir(exist_ok=True)

  def views(self) -> dict[str, Callable[[], Scores]]:
    """The views that this run has, by their name in metrics.jsonl."""
    personalised = {"test_personal": self.personal, "test_personal_common": self.personal_common}
    if self._config.fed.share == "none":
      return personalised
    views: dict[str, Callable[[], Scores]] = {
      "test": self.test,
      "test_common": self.common,
      "test_blind": self.blind,
    }
    if self._config.prompter.fusion == "dynamic":
      views["test_mean_fusion"] = self.mean_fusion
    if self._setup.trainer is None:  # the clients, and their local leaves, are elsewhere
      return views
    if baselines := self._setup.baselines:
      compared = {f"test_{name}": partial(self.baseline, name) for name in baselines.trainers}
      views |= personalised | compared
    elif personalises(self._config):
      views |= personalised
    if self._config.fed.newcomers:
      views["newcomer_global"] = self.newcomer_global
      views |= {"newcomer_before": self.newcomer_before, "newcomer_after": self.newcomer_after}
    return views

  def test(self) -> Scores:
    """The global model, with the mean fusion weights of captions and of questions."""
    setup, params = self._setup, self._setup.global_params(self._shared)
    predictions = setup.evaluator.predict(params, self._split, self._rows)
    write_predictions(predictions, self._files / "test.jsonl")
    loss = setup.evaluator.loss(params, self._split, self._rows)
    scores = score_predictions(predictions) | count_unknown_tokens(predictions)
    return {"loss": loss, **scores, **_fusion(predictions)}

  def common(self) -> Scores:
    """The global model on the examples that every client is scored on."""
    rows = evenly_spread(len(self._split), self._config.eval.common_examples)
    params = self._setup.global_params(self._shared)
    return score_predictions(self._setup.evaluator.predict(params, self._split, rows))

  def blind(self) -> Scores:
    """The global model without the image."""
    params = self._setup.global_params(self._shared)
    predictions = self._setup.evaluator.predict(params, self._split, self._rows, see_image=False)
    write_predictions(predictions, self._files / "test_blind.jsonl")
    return score_predictions(predictions)

  def mean_fusion(self) -> Scores:
    """The global model with one set of fusion weights for every sample."""
    lines = self._test_lines()
    weights = np.mean([list(line["fusion"].values()) for line in lines], axis=0)
    params = self._setup.global_params(self._shared)
    score_layer = params["fusion"]["score"]
    # A layer with weight 0 and the logarithm of the mean as bias gives every sample the mean.
    constant = {
      "kernel": np.zeros_like(score_layer["kernel"]),
      "bias": np.log(np.maximum(weights, 1e-9)).astype(np.float32),
    }
    params = params | {"fusion": params["fusion"] | {"score": constant}}
    predictions = self._setup.evaluator.predict(params, self._split, self._rows)
    changed = [
      p.prediction != line["prediction"] for p, line in zip(predictions, lines, strict=True)
    ]
    return {**score_predictions(predictions), "changed": float(np.mean(changed))}

  def personal(self) -> Scores:
    """Each example by the personalised model of its client."""
    names = [self._names[client] for client in self._participants()]
    rounds = self._config.fed.rounds
    by_row = personalised_predictions(self._setup, self._shared, rounds, "test", self._rows, names)
    return self._keep(by_row, "test_personal")

  def baseline(self, name: str) -> Scores:
    """Each example by the model of a baseline that its client would use."""
    baselines = self._setup.baselines
    assert baselines is not None, "no other run has this view"
    params, sites = partial(baselines.params, name), baselines.sites
    where = self._setup, baselines.evaluator
    by_row = predictions_of_sites(*where, params, "test", self._rows, sites)
    return self._keep(by_row, f"test_{name}")

  def personal_common(self) -> Scores:
    """The mean over clients, each scored on the same examples of all clients."""
    rows = evenly_spread(len(self._split), self._config.eval.common_examples)
    found = []
    for client in self._participants():
      params = personal_params(self._setup, self._shared, client, self._config.fed.rounds)
      predictions = self._setup.evaluator.predict(params, self._split, rows, personalised=True)
      found.append(score_predictions(predictions))
    return {name: float(np.mean([scores[name] for scores in found])) for name in found[0]}

  def newcomer_global(self) -> Scores:
    """Newcomers' examples by the global model."""
    params = self._setup.global_params(self._shared)
    return self._score_newcomers(lambda client: params, personalised=False)

  def newcomer_before(self) -> Scores:
    """Newcomers' examples; the prompts that they match in the pool are the local prompt."""
    rounds = self._config.fed.rounds
    params = self._trainer.personal
    return self._score_newcomers(
      lambda client: params(self._shared, client, rounds), personalised=True
    )

  def newcomer_after(self) -> Scores:
    """Newcomers' examples by copies of the global model that they trained."""
    joiner, rounds = self._setup.joiner, self._config.fed.rounds
    assert joiner is not None, "the config has newcomers"
    start = {c: self._trainer.personal(self._shared, c, rounds) for c in self._newcomers()}
    joined = train_newcomers(joiner, start)
    return self._score_newcomers(joined.__getitem__, personalised=True)

  def client_of_id(self) -> dict[str, str]:
    """The client of each test example, by the example's id."""
    return {self._split.examples[row].id: name for row, name in self._client_of().items()}

  def _keep(self, by_row: Mapping[int, Prediction], view: str) -> Scores:
    """Writes the predictions of a view in the order of their rows, and scores them."""
    predictions = [by_row[row] for row in sorted(by_row)]
    write_predictions(predictions, self._files / f"{view}.jsonl")
    return score_predictions(predictions)

  def _score_newcomers(self, params: Callable[[int], Params], personalised: bool) -> Scores:
    client_of, predictions = self._client_of(), []
    for client in self._newcomers():
      rows = [row for row in self._rows if client_of[row] == self._names[client]]
      predictions += self._setup.evaluator.predict(params(client), self._split, rows, personalised)
    return score_predictions(predictions)

  @property
  def _trainer(self) -> LocalTrainer | DittoTrainer:
    trainer = self._setup.trainer
    assert trainer is not None, "no view needs clients that are elsewhere"
    return trainer

  def _participants(self) -> list[int]:
    """The honest clients that took part; scores of malicious clients do not matter."""
    taking_part = self._names[: len(self._names) - self._config.fed.newcomers]
    return [i for i, name in enumerate(taking_part) if name not in self._setup.malicious]

  def _newcomers(self) -> range:
    """The clients that took no part: the last by name."""
    return range(len(self._names) - self._config.fed.newcomers, len(self._names))

  def _client_of(self) -> dict[int, str]:
    """The client of each example."""
    clients = self._setup.clients["test"]
    return {int(row): name for name, rows in clients.items() for row in rows}

  def _test_lines(self) -> list[dict[str, Any]]:
    """The predictions of the global model, as `test` wrote them."""
    text = (self._files / "test.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def _fusion(predictions: Sequence[Prediction]) -> Scores:
  """Mean weight of each source for captions and for questions, and its spread over samples."""
  out: Scores = {}
  for task, is_answer in (("captions", False), ("questions", True)):
    part = [list(p.fusion.values()) for p in predictions if bool(p.question) == is_answer]
    if part:
      means = zip(predictions[0].fusion, np.mean(part, axis=0), strict=True)
      out |= {f"fusion_{source}_{task}": float(mean) for source, mean in means}
  weights = [list(p.fusion.values()) for p in predictions]
  return out | {"fusion_sd": float(np.std(weights, axis=0).mean())}
