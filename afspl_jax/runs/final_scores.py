"""What a finished run is worth: the global prompter, each client's own, and what they rest on."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from afspl_jax.evaluation.generate import Prediction, score, spread, write
from afspl_jax.evaluation.metrics.captions import score_captions
from afspl_jax.evaluation.metrics.vqa import vqa_accuracy
from afspl_jax.evaluation.scores import client_means
from afspl_jax.federation.client.local_trainer import LocalTrainer
from afspl_jax.runs.prepare import Setup
from afspl_jax.storage.atomic_files import write_text
from afspl_jax.storage.run_folder import RunFolder
from afspl_jax.training.train_step import warmup_steps
from afspl_jax.types import Params

Scores = dict[str, Any]


def score_finished(
  setup: Setup, folder: RunFolder, shared: Params, progress: Callable[..., tqdm] = tqdm
) -> dict[str, Scores]:
  """Adds the lines of the test split to metrics.jsonl, each once, and returns them by their split.

  Where clients share nothing there is no global prompter, and only the last two of the first six.
  Where clients are on other hosts, there are only the first four.

  - `test`: the global prompter.
  - `test_common`: the same, on the examples of `test_personal_common`.
  - `test_blind`: the same, shown no image.
  - `test_mean_fusion`: the same, every sample's fusion weights replaced by their mean; `changed`
    is the share of texts that differ.
  - `test_personal`: every example answered by the prompter of the client whose it is, if that took
    part and is honest.
  - `test_personal_common`: the mean over the same clients, each answering examples of all.
  - `newcomer_global`, `newcomer_before`, `newcomer_after`: of the clients that took no part, on
    their own examples: without a prompt of their own, with what their examples match in the pool,
    and after one round of local training, which the server's leaves have not seen.

  Args:
    setup: the run's.
    folder: the run's.
    shared: the global prompter's leaves (NumPy).
    progress: makes the progress bar.
  """
  final = Final(setup, folder.path / "predictions", shared)
  done = {line["split"] for line in folder.metrics()}
  trained = [line for line in folder.metrics() if line["split"] == "train"]
  last = trained[-1] if trained else {"round": 0, "clients": 0}  # a budget may end a run early
  for name, scores in progress(final.views().items(), desc="test", unit="view"):
    if name not in done:
      begin = time.perf_counter()
      line = {"round": last["round"], "split": name, **scores()}
      if name == next(iter(final.views())):
        line["bytes_up"] = sum(line["bytes_up"] for line in trained)
        line["bytes_down"] = sum(line["bytes_down"] for line in trained)
        line["clients"] = last["clients"]
        line |= {"epsilon": last["epsilon"]} if "epsilon" in last else {}
      folder.append_metrics(line | {"seconds": round(time.perf_counter() - begin, 3)})
  return {line["split"]: line for line in folder.metrics() if line["split"] in final.views()}


class Final:
  """The ways of looking at a finished run, each a function that gives scores.

  Args:
    setup: the run's.
    files: folder of the predictions.
    shared: the global prompter's leaves (NumPy).
  """

  def __init__(self, setup: Setup, files: Path, shared: Params):
    self._setup, self._files, self._shared = setup, files, shared
    self._config, self._split = setup.config, setup.splits["test"]
    self._rows = spread(len(self._split), self._config.eval.test_examples)
    self._names = sorted(setup.clients.get("train", ()))
    files.mkdir(exist_ok=True)

  def views(self) -> dict[str, Callable[[], Scores]]:
    """Those that this run has, by the split that metrics.jsonl names them."""
    own = {"test_personal": self.personal, "test_personal_common": self.personal_common}
    if self._config.fed.share == "none":
      return own
    views: dict[str, Callable[[], Scores]] = {
      "test": self.test,
      "test_common": self.common,
      "test_blind": self.blind,
    }
    if self._config.prompter.fusion == "dynamic":
      views["test_mean_fusion"] = self.mean_fusion
    if self._setup.trainer is None:  # sites keep their prompts, and these are elsewhere
      return views
    if self._config.prompter.local:
      views |= own
    if self._config.fed.newcomers:
      views["newcomer_global"] = self.newcomer_global
      views |= {"newcomer_before": self.newcomer_before, "newcomer_after": self.newcomer_after}
    return views

  def test(self) -> Scores:
    """The global prompter, with the mean fusion weights of captions and of questions."""
    setup, params = self._setup, self._setup.whole(self._shared)
    predictions = setup.evaluator.predict(params, self._split, self._rows)
    write(predictions, self._files / "test.jsonl")
    loss = setup.evaluator.loss(params, self._split, self._rows)
    return {"loss": loss, **score(predictions), **_fusion(predictions)}

  def common(self) -> Scores:
    """The global prompter on the examples that every client answers."""
    rows = spread(len(self._split), self._config.eval.common_examples)
    whole = self._setup.whole(self._shared)
    return score(self._setup.evaluator.predict(whole, self._split, rows))

  def blind(self) -> Scores:
    """The global prompter, shown no image."""
    params = self._setup.whole(self._shared)
    predictions = self._setup.evaluator.predict(params, self._split, self._rows, see_image=False)
    write(predictions, self._files / "test_blind.jsonl")
    return score(predictions)

  def mean_fusion(self) -> Scores:
    """The global prompter with one set of fusion weights for every sample."""
    usual = self._usual()
    weights = np.mean([list(line["fusion"].values()) for line in usual], axis=0)
    params = self._setup.whole(self._shared)
    score_layer = params["fusion"]["score"]
    # A layer of weight 0 whose bias is the logarithm of the mean gives the mean to every sample.
    constant = {
      "kernel": np.zeros_like(score_layer["kernel"]),
      "bias": np.log(np.maximum(weights, 1e-9)).astype(np.float32),
    }
    params = params | {"fusion": params["fusion"] | {"score": constant}}
    predictions = self._setup.evaluator.predict(params, self._split, self._rows)
    changed = [
      p.prediction != line["prediction"] for p, line in zip(predictions, usual, strict=True)
    ]
    return {**score(predictions), "changed": float(np.mean(changed))}

  def personal(self) -> Scores:
    """Every example answered by its own client's prompter; sites.jsonl has it client by client."""
    owner = self._owner()
    names = [self._names[client] for client in self._participants()]
    rounds = self._config.fed.rounds
    by_row = answered_by_owners(self._setup, self._shared, rounds, "test", self._rows, names)
    rows = sorted(by_row)
    predictions = [by_row[row] for row in rows]
    write(predictions, self._files / "test_personal.jsonl")
    texts = {"personal": [p.prediction for p in predictions]}
    if self._config.fed.share != "none":
      usual = dict(zip(self._rows, self._usual(), strict=True))
      texts["global"] = [usual[row]["prediction"] for row in rows]
    sites = _by_client([owner[row] for row in rows], predictions, texts)
    lines = "".join(json.dumps(line) + "\n" for line in sites)
    write_text(self._files.parent / "sites.jsonl", lines)
    return score(predictions)

  def personal_common(self) -> Scores:
    """The mean over clients, each answering the same examples, which are of all clients."""
    rows = spread(len(self._split), self._config.eval.common_examples)
    found = []
    for client in self._participants():
      params = self._trainer.personal(self._shared, client, self._config.fed.rounds)
      found.append(score(self._setup.evaluator.predict(params, self._split, rows, personal=True)))
    return {name: float(np.mean([scores[name] for scores in found])) for name in found[0]}

  def newcomer_global(self) -> Scores:
    """Newcomers' own examples by the global prompter."""
    whole = self._setup.whole(self._shared)
    return self._of_newcomers(lambda client: whole, personal=False)

  def newcomer_before(self) -> Scores:
    """Newcomers' own examples, with what their examples match in the pool as their prompt."""
    rounds = self._config.fed.rounds
    own = self._trainer.personal
    return self._of_newcomers(lambda client: own(self._shared, client, rounds), personal=True)

  def newcomer_after(self) -> Scores:
    """Newcomers' own examples, after a first round of local training at the full rates."""
    trainer, optim = self._trainer, self._config.optim
    after = self._config.fed.rounds + 1
    warm = warmup_steps(optim, self._config.fed.rounds)
    for result in trainer.train_cohort(self._shared, self._newcomers(), after, warm).values():
      if isinstance(result, Exception):
        raise result
    own = trainer.personal
    return self._of_newcomers(lambda client: own(self._shared, client, after), personal=True)

  def _of_newcomers(self, params: Callable[[int], Params], personal: bool) -> Scores:
    owner, predictions = self._owner(), []
    for client in self._newcomers():
      rows = [row for row in self._rows if owner[row] == self._names[client]]
      found = self._setup.evaluator.predict(params(client), self._split, rows, personal)
      predictions += found
    return score(predictions)

  @property
  def _trainer(self) -> LocalTrainer:
    trainer = self._setup.trainer
    assert trainer is not None, "no view asks for clients that are elsewhere"
    return trainer

  def _participants(self) -> list[int]:
    """The clients of the federation that are honest: others' own scores are nobody's loss."""
    taking_part = self._names[: len(self._names) - self._config.fed.newcomers]
    return [i for i, name in enumerate(taking_part) if name not in self._setup.malicious]

  def _newcomers(self) -> range:
    """Those that took no part: the last by name."""
    return range(len(self._names) - self._config.fed.newcomers, len(self._names))

  def _owner(self) -> dict[int, str]:
    """The client of every example."""
    clients = self._setup.clients["test"]
    return {int(row): name for name, rows in clients.items() for row in rows}

  def _usual(self) -> list[dict[str, Any]]:
    """What the global prompter said, as `test` wrote it."""
    text = (self._files / "test.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def answered_by_owners(
  setup: Setup, shared: Params, round: int, split: str, rows: Sequence[int], clients: Sequence[str]
) -> dict[int, Prediction]:
  """What clients say of their own examples among `rows`, each with its own prompt.

  Args:
    setup: of a run whose clients are here.
    shared: the server's leaves after the round (NumPy).
    round: of the clients' own prompts, too.
    split: of the examples.
    rows: in the split.
    clients: names of those that are asked.
  """
  trainer, names = setup.trainer, sorted(setup.clients["train"])
  assert trainer is not None, "clients are here"
  by_row: dict[int, Prediction] = {}
  for client in clients:
    own = set(setup.clients[split][client].tolist())
    mine = [row for row in rows if row in own]
    params = trainer.personal(shared, names.index(client), round)
    found = setup.evaluator.predict(params, setup.splits[split], mine, personal=True)
    by_row.update(zip(mine, found, strict=True))
  return by_row


def _fusion(predictions: Sequence[Prediction]) -> Scores:
  """Mean weight of each source in captions and in questions, and its spread over samples."""
  out: Scores = {}
  for kind, asked in (("captions", False), ("questions", True)):
    part = [list(p.fusion.values()) for p in predictions if bool(p.question) == asked]
    if part:
      means = zip(predictions[0].fusion, np.mean(part, axis=0), strict=True)
      out |= {f"fusion_{source}_{kind}": float(mean) for source, mean in means}
  weights = [list(p.fusion.values()) for p in predictions]
  return out | {"fusion_sd": float(np.std(weights, axis=0).mean())}


def _by_client(
  owners: Sequence[str], examples: Sequence[Prediction], texts: dict[str, list[str]]
) -> list[dict[str, Any]]:
  """Mean scores of each client's examples, for what each prompter said of them.

  CIDEr takes its document frequencies from the examples of all clients, so that clients compare.
  """
  lines = {name: {"client": name, "examples": owners.count(name)} for name in sorted(set(owners))}
  for asked, key in ((False, "cider"), (True, "vqa_accuracy")):
    index = [i for i, p in enumerate(examples) if bool(p.question) == asked]
    if not index:
      continue
    references = [examples[i].references for i in index]
    for prompter, said in texts.items():
      chosen = [said[i] for i in index]
      items = (
        vqa_accuracy(chosen, references).items
        if asked
        else score_captions(chosen, references).cider_items
      )
      means = client_means(items, index, owners)
      for name, line in lines.items():
        line[f"{prompter}_{key}"] = means.get(name)
  return list(lines.values())
