"""Runs an experiment: trains its rounds, and scores the trained prompter on the test split."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from afspl_jax.config.experiment import Experiment, to_dict
from afspl_jax.data.partition import save_partition
from afspl_jax.evaluation.generate import evenly_spread
from afspl_jax.evaluation.scores import ANSWERS
from afspl_jax.federation.client import malicious
from afspl_jax.federation.client.client_store import ClientStore
from afspl_jax.federation.privacy.update_clipping import clipping_of
from afspl_jax.federation.secure.site import masking_of
from afspl_jax.federation.server.aggregation import aggregation_of
from afspl_jax.federation.server.progress import SILENT, Progress
from afspl_jax.federation.server.rounds import Plan
from afspl_jax.federation.server.server_app import run_local
from afspl_jax.reporting.tensorboard import TensorBoard
from afspl_jax.runs.fine_tuning import fine_tune
from afspl_jax.runs.prepare import (
  SPLITS,
  Setup,
  enable_compilation_cache,
  find_inputs,
  prepare_setup,
)
from afspl_jax.runs.progress_bar import ProgressBar
from afspl_jax.runs.scoring.final_scores import score_finished_run
from afspl_jax.runs.validate import validate
from afspl_jax.storage.checkpoints import Checkpoints
from afspl_jax.storage.run_folder import RunFolder
from afspl_jax.types import Params

# Runs the rounds of a plan over some Grid, and returns the parameters to score.
PlanRunner = Callable[[Setup, Plan, Progress], Params]

# Scores the shared leaves after a round; returns None if the round is not scored.
Evaluate = Callable[[int, Params], dict[str, float] | None]

HEADLINE = ("cider", "bleu4", "rouge_l", *ANSWERS, "loss")


def score_no_round(round: int, params: Params) -> None:
  """Scores no round."""


def plan_of(
  setup: Setup, folder: RunFolder, checkpoints: Checkpoints, evaluate: Evaluate = score_no_round
) -> Plan:
  """The plan of an experiment's rounds.

  Args:
    setup: the prepared experiment.
    folder: the run folder.
    checkpoints: the checkpoints in it.
    evaluate: scores a round; by default no round is scored.
  """
  config = setup.config
  return Plan(
    params=setup.shared,
    strategy=setup.strategy,
    fed=config.fed,
    seed=config.seed,
    folder=folder,
    checkpoints=checkpoints,
    evaluate=evaluate,
    terms=setup.terms,
    weighing=config.uplink.weighing,
    ema=config.eval.ema,
    aggregation=aggregation_of(config, folder.path),
  )


def in_process(setup: Setup, plan: Plan, progress: Progress = SILENT) -> Params:
  """Runs the rounds of a plan with all clients in this process, over one copy of the models."""
  assert setup.trainer is not None, "clients are here"
  taking_part = len(setup.clients["train"]) - setup.config.fed.newcomers
  trainer = malicious.with_attack(setup.trainer, setup.malicious, setup.config.attack)
  clipping = clipping_of(setup.config, plan.folder.path / "clients")
  masking, statistics = masking_of(setup.config), setup.statistics
  return run_local(plan, trainer, taking_part, clipping, masking, progress, statistics)


def run_experiment(
  config: Experiment,
  workdir: Path,
  progress: Callable[..., tqdm] = tqdm,
  say: Callable[[str], None] = tqdm.write,
  run_plan: PlanRunner = in_process,
  splits: Sequence[str] = SPLITS,
) -> dict[str, dict[str, Any]]:
  """Runs an experiment, or the rest of it, and scores the trained prompter on the test split.

  Args:
    config: the experiment.
    workdir: the run folder. A run with the same config in it is resumed.
    progress: makes the progress bar.
    say: prints a line for the user: the summary of the run, and events at remote sites.
    run_plan: runs the rounds with the clients.
    splits: splits that this process reads; without "train", the clients are in other processes.

  Returns:
    The lines of metrics.jsonl about the test split, by the name of their view.

  Raises:
    UserError: a mistake of the user; the message says what to do.
    RoundFailed: too few clients sent a valid reply.
  """
  validate(config)
  enable_compilation_cache()
  inputs = find_inputs(config, splits)
  with RunFolder.open(workdir, to_dict(config)) as folder, TensorBoard(folder.path) as board:
    setup = prepare_setup(config, inputs, ClientStore(folder.path / "clients"))
    _record_setup(folder, setup)
    say(_summary(setup))
    images = inputs.sources["validation"]
    remote = setup.trainer is None
    bar = ProgressBar(config.fed.rounds, board, images, remote, progress, say)
    shared = _run_rounds(setup, folder, run_plan, bar)
    if setup.trainer and setup.trainer.private_batches:
      say(setup.trainer.private_batches.spent_text())
    fine_tune(setup, shared, progress)
    if setup.baselines:
      setup.baselines.train(folder.clients(), progress)
    scores = score_finished_run(setup, folder, shared, progress)
    board.update(images)
    return scores


def _record_setup(folder: RunFolder, setup: Setup) -> None:
  """Writes what the run read, how it is partitioned, and its devices into the run folder."""
  folder.require_same(setup.facts)
  if setup.clients:
    examples = {name: split.examples for name, split in setup.splits.items()}
    how = setup.config.data, setup.config.seed, setup.facts["data"]
    save_partition(folder.path, examples, setup.clients, *how)
  folder.record_place({"devices": _devices()})


def _run_rounds(setup: Setup, folder: RunFolder, run_plan: PlanRunner, bar: ProgressBar) -> Params:
  """Trains the rounds that are left, and returns the shared leaves to score."""
  checkpoints = Checkpoints(folder.path / "checkpoints")
  scores = _ValidationScores(setup, folder)
  try:
    return run_plan(setup, plan_of(setup, folder, checkpoints, scores.after_round), bar)
  finally:
    checkpoints.close()
    bar.close()


class _ValidationScores:
  """Scores of the global model on the validation split, after every `eval.every` rounds."""

  def __init__(self, setup: Setup, folder: RunFolder):
    self._setup, self._folder = setup, folder
    self._split = setup.splits["validation"]
    self._rows = evenly_spread(len(self._split), setup.config.eval.val_examples)

  def after_round(self, round: int, shared: Params) -> dict[str, float] | None:
    """The scores after a round; None if this round is not scored."""
    setup, file = self._setup, self._folder.predictions_file(round)
    if round % setup.config.eval.every and round != setup.config.fed.rounds:
      return None
    return setup.evaluator.scores(setup.global_params(shared), self._split, self._rows, file)


def _devices() -> str:
  devices = jax.local_devices()
  return f"{len(devices)} x {devices[0].device_kind}"


def _summary(setup: Setup) -> str:
  """The experiment in one line."""
  config = setup.config
  if setup.clients:
    sizes = [len(rows) for rows in setup.clients["train"].values()]
    few, many = min(sizes), max(sizes)
    each = f"{few:,}" if few == many else f"{few:,} to {many:,}"
    who = f"{len(sizes)} clients with {each} examples each"
    who += f" ({config.data.partition} partition)"
    if setup.malicious:
      who += f", {len(setup.malicious)} of them malicious ({config.attack.kind})"
  else:
    who = f"{config.data.num_clients} sites on other hosts"
  shared, local = (
    sum(leaf.size for leaf in jax.tree.leaves(leaves)) for leaves in (setup.shared, setup.local)
  )
  return (
    f"{who}, {config.fed.rounds} rounds of {config.fed.strategy}; {shared:,} trainable parameters"
    f" are shared, {local:,} stay at each client; frozen {config.backbone.t5} T5; {_devices()}"
  )
