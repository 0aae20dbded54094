"""Scores a kept checkpoint of a run again, also with other settings, splits or scores."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from afspl_jax.config.fields import changed
from afspl_jax.config.nested_values import digest
from afspl_jax.data.partition import Clients, partition
from afspl_jax.errors import UserError
from afspl_jax.evaluation.extra_scores import (
  clipscore_of_captions,
  java_scores,
  retrieval_scores,
)
from afspl_jax.evaluation.generate import decoding_settings, evenly_spread
from afspl_jax.evaluation.metrics.java_metrics import require_java_metric
from afspl_jax.evaluation.predictions import Prediction, count_unknown_tokens, write_predictions
from afspl_jax.evaluation.scores import Score, score_with_intervals, scores_by_client
from afspl_jax.federation.client.client_store import ClientStore
from afspl_jax.runs.frozen import load_encoder
from afspl_jax.runs.prepare import (
  SPLITS,
  Inputs,
  Setup,
  find_inputs,
  partition_digest,
  prepare_setup,
  read_examples,
)
from afspl_jax.runs.scoring.personalised import personalised_predictions
from afspl_jax.runs.trained.finished_run import (
  FinishedRun,
  find_backbones,
  find_round,
  load_shared_leaves,
  open_run,
  require_same_data,
)
from afspl_jax.storage.atomic_files import write_text
from afspl_jax.types import Params


@dataclasses.dataclass(frozen=True)
class EvaluationRequest:
  """What is scored, and how."""

  split: str = "test"
  round: int | None = None  # None: the newest
  personalised: bool = False  # each example by the personalised model of its client
  site: str = ""  # only this client's examples, by its personalised model
  examples: int | None = None  # of the split, 0 for all; None: as in the run
  more: tuple[str, ...] = ()  # "clipscore", "retrieval", "meteor", "spice"
  changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # fields of `eval`
  folders: Mapping[str, str] = dataclasses.field(default_factory=dict)  # of "clip" and "t5"

  @property
  def uses_local_leaves(self) -> bool:
    """Whether personalised models are scored."""
    return self.personalised or bool(self.site)

  def file_name(self, round: int) -> str:
    """A file name, without suffix, that differs for different requests."""
    parts = [self.split, f"round_{round:04d}"]
    if self.site:
      parts.append(f"site_{quote(self.site, safe='')}")
    elif self.personalised:
      parts.append("personal")
    parts += sorted(set(self.more))
    if self.changes or self.examples is not None:
      parts.append(digest([sorted(self.changes.items()), self.examples])[:8])
    return "_".join(parts)


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """The scores and predictions of one request."""

  summary: dict[str, Any]
  predictions: list[Prediction]
  name: str  # of its files, without suffix


def evaluate_run(path: Path, request: EvaluationRequest) -> Evaluation:
  """Scores a checkpoint of a run.

  Args:
    path: the run folder; a process may still be training in it.
    request: what is scored.

  Raises:
    UserError: a file is missing or differs from what the run was trained on, or the run does not
      support the request.
  """
  for name in sorted({"meteor", "spice"} & set(request.more)):
    require_java_metric(name)  # before anything slow
  run = open_run(path)
  _require_available(run, request)
  setup, clients = _prepare_again(run, request)
  round, shared = load_shared_leaves(run, setup.shared, request.round)
  split = setup.splits[request.split]
  rows, predictions = _predict(setup, request, clients.get(request.split, {}), shared, round)
  if not rows:
    raise UserError(f"{path}: expected examples to score; got none of {request.site or 'them'}")
  images = [split.examples[row].image for row in rows]
  scores = score_with_intervals(predictions, images)
  if not request.uses_local_leaves:
    loss = setup.evaluator.loss(setup.global_params(shared), split, rows)
    scores = {"loss": Score(loss), **scores}
  model = request.site or ("personal" if request.personalised else "global")
  summary: dict[str, Any] = {
    "run": str(path),
    "split": request.split,
    "round": round,
    "prompter": model,
    "examples": len(rows),
    "images": len(set(images)),
    "decoding": dataclasses.asdict(decoding_settings(setup.config.eval)),
  }
  clip, retrieval = _clip_scores(setup, request, rows, predictions)
  scores |= clip | java_scores(predictions, images, request.more)
  summary |= retrieval | count_unknown_tokens(predictions)
  summary["scores"] = {name: _score_json(score) for name, score in scores.items()}
  if clients and not request.site:
    summary |= _client_scores(scores, clients[request.split], rows)
  return Evaluation(summary, predictions, request.file_name(round))


def write_evaluation(evaluation: Evaluation, folder: Path) -> Path:
  """Writes `NAME.json` and, beside it, the predictions `NAME.jsonl`; returns the first.

  Raises:
    UserError: the files cannot be written.
  """
  file = folder / f"{evaluation.name}.json"
  try:
    folder.mkdir(parents=True, exist_ok=True)
    write_predictions(evaluation.predictions, file.with_suffix(".jsonl"))
    write_text(file, json.dumps(evaluation.summary, indent=2, ensure_ascii=False) + "\n")
  except OSError as error:
    raise UserError(
      f"{folder}: expected to write the evaluation there; got: {error}. Choose another --out"
    ) from error
  return file


def _require_available(run: FinishedRun, request: EvaluationRequest) -> None:
  """Rejects a request that the run cannot fulfil, before anything is loaded."""
  find_round(run, request.round)
  read = run.facts["data"]
  if request.split not in read:
    raise UserError(
      f"{run.path}: expected a split that this run read, {' or '.join(sorted(read))}; got"
      f" {request.split}. The server and the sites of a federation read different splits"
    )
  if request.uses_local_leaves and "train" not in read:
    raise UserError(
      f"{run.path}: expected a run in one process for --personal and --site; the local prompts of"
      " this run are at its sites. There, use `afspl caption FILE --site=NAME --own=RUN`"
    )
  if not request.uses_local_leaves and run.config.fed.share == "none":
    raise UserError(
      f"{run.path}: expected a run with a global model; its sites share nothing. Add --personal"
    )


def _prepare_again(
  run: FinishedRun, request: EvaluationRequest
) -> tuple[Setup, dict[str, Clients]]:
  """The setup of the run, and the rows of its clients; {} if its sites are elsewhere."""
  config, trained_here = run.config, "train" in run.facts["data"]
  folders = find_backbones(config, run.facts["backbones"], request.folders)
  changes = {f"eval.{name}": value for name, value in request.changes.items()}
  changes |= {f"backbone.{kind}": name for kind, name in request.folders.items() if name}
  changes["fed.compare"] = "none"  # only the federation's models are scored again
  config = changed(config, changes)
  decoding_settings(config.eval)
  sources = find_inputs(config, SPLITS if trained_here else (request.split,)).sources
  clients: dict[str, Clients] = {}
  facts = {request.split: sources[request.split].fingerprint}
  if trained_here:
    examples = read_examples(sources)
    clients = partition(examples, config.data, config.seed)
    facts["partition"] = partition_digest(examples, clients)
  require_same_data(run.path, {"partition": run.facts["partition"], **run.facts["data"]}, facts)
  if request.site and request.site not in clients[request.split]:
    known = ", ".join(sorted(clients[request.split]))
    raise UserError(f"--site: expected one of {known}; got {request.site!r}")
  # Splits that are not scored are not encoded: "train" may be large.
  needed = sources if request.uses_local_leaves else {request.split: sources[request.split]}
  inputs = Inputs(folders, needed, run.facts["backbones"])
  return prepare_setup(config, inputs, ClientStore(run.clients, read_only=True)), clients


def _predict(
  setup: Setup, request: EvaluationRequest, clients: Clients, shared: Params, round: int
) -> tuple[Sequence[int], list[Prediction]]:
  """The rows that are scored, and their predictions."""
  split, settings = setup.splits[request.split], setup.config.eval
  default = settings.test_examples if request.split == "test" else settings.val_examples
  rows = evenly_spread(len(split), default if request.examples is None else request.examples)
  if not request.uses_local_leaves:
    return rows, setup.evaluator.predict(setup.global_params(shared), split, rows)
  names = sorted(clients)
  taking_part = names[: len(names) - setup.config.fed.newcomers]
  honest = [name for name in taking_part if name not in setup.malicious]
  scored = [request.site] if request.site else honest
  by_row = personalised_predictions(setup, shared, round, request.split, rows, scored)
  rows = sorted(by_row)
  return rows, [by_row[row] for row in rows]


def _clip_scores(
  setup: Setup,
  request: EvaluationRequest,
  rows: Sequence[int],
  predictions: Sequence[Prediction],
) -> tuple[dict[str, Score], dict[str, Any]]:
  """The requested scores that need CLIP's text tower: of captions, and of retrieval."""
  if not {"clipscore", "retrieval"} & set(request.more):
    return {}, {}
  folder = find_inputs(setup.config, ()).folders["clip"]
  encoder = load_encoder(setup.config, folder, setup.facts["backbones"]["clip"])
  split = setup.splits[request.split]
  scores, retrieval = {}, {}
  if "clipscore" in request.more:
    scores = clipscore_of_captions(predictions, split, rows, encoder)
  if "retrieval" in request.more:
    retrieval = {"retrieval": retrieval_scores(split, rows, encoder)}
  return scores, retrieval


def _score_json(score: Score) -> dict[str, float]:
  return {"value": score.value} | (score.interval._asdict() if score.interval else {})


def _client_scores(
  scores: Mapping[str, Score], clients: Clients, rows: Sequence[int]
) -> dict[str, Any]:
  """The scores of each client, and their dispersion over clients."""
  client_of = {int(row): name for name, part in clients.items() for row in part}
  lines, dispersion = scores_by_client(scores, [client_of[row] for row in rows])
  over = {name: dataclasses.asdict(one) for name, one in dispersion.items()}
  return {"clients": lines, "over_clients": over}
