"""Scores of a kept checkpoint of a run, again or otherwise: other beams, split, site, or scores."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from afspl_jax.config.experiment import digest
from afspl_jax.config.fields import changed
from afspl_jax.data.partition import Clients, partition
from afspl_jax.errors import UserError
from afspl_jax.evaluation import java_scores
from afspl_jax.evaluation.generate import Prediction, decoding, spread, write
from afspl_jax.evaluation.scores import (
  Measured,
  by_client,
  clip_measures,
  java_measures,
  measure,
  retrieval,
)
from afspl_jax.federation.client.client_store import ClientStore
from afspl_jax.runs.final_scores import answered_by_owners
from afspl_jax.runs.frozen import load_encoder
from afspl_jax.runs.prepare import SPLITS, Inputs, Setup, find, partition_digest, prepare
from afspl_jax.runs.trained.finished_run import (
  FinishedRun,
  agree,
  find_pair,
  find_round,
  open_run,
  shared_leaves,
)
from afspl_jax.storage.atomic_files import write_text
from afspl_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Request:
  """What is scored, and how."""

  split: str = "test"
  round: int | None = None  # None: the newest
  personal: bool = False  # every example by the prompter of the client whose it is
  site: str = ""  # this client's examples, by its own prompter
  examples: int | None = None  # of the split, 0 for all; None: as in the run
  more: tuple[str, ...] = ()  # "clipscore", "retrieval", "meteor", "spice"
  changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of eval's fields
  folders: Mapping[str, str] = dataclasses.field(default_factory=dict)  # of "clip" and "t5"


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What was found."""

  summary: dict[str, Any]
  predictions: list[Prediction]
  name: str  # of its files, without a suffix


def evaluate(path: Path, request: Request) -> Evaluation:
  """Scores a run.

  Args:
    path: the run's folder; a process may be at work in it.
    request: what is scored.

  Raises:
    UserError: something is missing or not what the run was trained on, or cannot be asked of it.
  """
  for name in sorted({"meteor", "spice"} & set(request.more)):
    java_scores.check(name)  # before what takes long
  run = open_run(path)
  _check_asked(run, request)
  setup, clients = _ready(run, request)
  round, shared = shared_leaves(run, setup.shared, request.round)
  split = setup.splits[request.split]
  rows, predictions = _predict(setup, request, clients.get(request.split, {}), shared, round)
  if not rows:
    raise UserError(f"{path}: expected examples to score; got none of {request.site or 'them'}")
  images = [split.examples[row].image for row in rows]
  measured = measure(predictions, images)
  own = request.personal or bool(request.site)
  if not own:
    loss = setup.evaluator.loss(setup.whole(shared), split, rows)
    measured = {"loss": Measured(loss), **measured}
  summary: dict[str, Any] = {
    "run": str(path),
    "split": request.split,
    "round": round,
    "prompter": request.site or ("personal" if own else "global"),
    "examples": len(rows),
    "images": len(set(images)),
    "decoding": dataclasses.asdict(decoding(setup.config.eval)),
  }
  if {"clipscore", "retrieval"} & set(request.more):
    folder = find(setup.config, ()).folders["clip"]
    encoder = load_encoder(setup.config, folder, setup.facts["backbones"]["clip"])
    if "clipscore" in request.more:
      measured |= clip_measures(predictions, split, rows, encoder)
    if "retrieval" in request.more:
      summary["retrieval"] = retrieval(split, rows, encoder)
  measured |= java_measures(predictions, images, request.more)
  summary["scores"] = {
    name: {"value": one.value} | (one.interval._asdict() if one.interval else {})
    for name, one in measured.items()
  }
  if clients and not request.site:
    owner = {int(row): name for name, part in clients[request.split].items() for row in part}
    lines, over = by_client(measured, [owner[row] for row in rows])
    summary["clients"] = lines
    summary["over_clients"] = {name: dataclasses.asdict(one) for name, one in over.items()}
  return Evaluation(summary, predictions, _name(request, round))


def save(found: Evaluation, folder: Path) -> Path:
  """Writes `NAME.json` and the predictions beside it, `NAME.jsonl`; returns the first.

  Raises:
    UserError: the disk refuses.
  """
  file = folder / f"{found.name}.json"
  try:
    folder.mkdir(parents=True, exist_ok=True)
    write(found.predictions, file.with_suffix(".jsonl"))
    write_text(file, json.dumps(found.summary, indent=2, ensure_ascii=False) + "\n")
  except OSError as error:
    raise UserError(
      f"{folder}: expected to write the evaluation there; got: {error}. Choose another --out"
    ) from error
  return file


def _check_asked(run: FinishedRun, request: Request) -> None:
  """Refuses what a run has not got, before anything is loaded."""
  find_round(run, request.round)
  read, own = run.facts["data"], request.personal or bool(request.site)
  if request.split not in read:
    raise UserError(
      f"{run.path}: expected a split that this run read, {' or '.join(sorted(read))}; got"
      f" {request.split}. Server and sites of one federation read different ones"
    )
  if own and "train" not in read:
    raise UserError(
      f"{run.path}: expected a run of one process for --personal and --site; the prompts of this"
      " one lie at its sites. There, use `afspl caption FILE --site=NAME --own=RUN`"
    )
  if not own and run.config.fed.share == "none":
    raise UserError(
      f"{run.path}: its sites share nothing, and there is no global prompter; add --personal"
    )


def _ready(run: FinishedRun, request: Request) -> tuple[Setup, dict[str, Clients]]:
  """The run as it was trained, and whose the examples are; {} where its sites are elsewhere."""
  config, trained_here = run.config, "train" in run.facts["data"]
  own = request.personal or bool(request.site)
  folders = find_pair(config, run.facts["backbones"], request.folders)
  changes = {f"eval.{name}": value for name, value in request.changes.items()}
  changes |= {f"backbone.{kind}": name for kind, name in request.folders.items() if name}
  config = changed(config, changes)
  decoding(config.eval)
  sources = find(config, SPLITS if trained_here else (request.split,)).sources
  clients: dict[str, Clients] = {}
  facts = {request.split: sources[request.split].fingerprint}
  if trained_here:
    examples = {name: [source[i] for i in range(len(source))] for name, source in sources.items()}
    clients = partition(examples, config.data, config.seed)
    facts["partition"] = partition_digest(examples, clients)
  agree(run.path, {"partition": run.facts["partition"], **run.facts["data"]}, facts)
  if request.site and request.site not in clients[request.split]:
    known = ", ".join(sorted(clients[request.split]))
    raise UserError(f"--site: expected one of {known}; got {request.site!r}")
  # What is not looked at need not be encoded: "train" may be large.
  needed = sources if own else {request.split: sources[request.split]}
  inputs = Inputs(folders, needed, run.facts["backbones"])
  return prepare(config, inputs, ClientStore(run.clients, read_only=True)), clients


def _predict(
  setup: Setup, request: Request, clients: Clients, shared: Params, round: int
) -> tuple[Sequence[int], list[Prediction]]:
  """The examples that are scored, and what is said of them."""
  split, settings = setup.splits[request.split], setup.config.eval
  usual = settings.test_examples if request.split == "test" else settings.val_examples
  rows = spread(len(split), usual if request.examples is None else request.examples)
  if not (request.personal or request.site):
    return rows, setup.evaluator.predict(setup.whole(shared), split, rows)
  names = sorted(clients)
  taking_part = names[: len(names) - setup.config.fed.newcomers]
  honest = [name for name in taking_part if name not in setup.malicious]
  asked = [request.site] if request.site else honest
  by_row = answered_by_owners(setup, shared, round, request.split, rows, asked)
  rows = sorted(by_row)
  return rows, [by_row[row] for row in rows]


def _name(request: Request, round: int) -> str:
  """Of the files: one for each way of asking."""
  parts = [request.split, f"round_{round:04d}"]
  if request.site:
    parts.append(f"site_{quote(request.site, safe='')}")
  elif request.personal:
    parts.append("personal")
  parts += sorted(set(request.more))
  otherwise = [sorted(request.changes.items()), request.examples]
  if request.changes or request.examples is not None:
    parts.append(digest(otherwise)[:8])
  return "_".join(parts)
