"""An experiment from its config to its scores."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from afspl_jax.config.experiment import Experiment, to_dict
from afspl_jax.data.partition import record
from afspl_jax.evaluation.generate import spread
from afspl_jax.federation.client import malicious
from afspl_jax.federation.client.client_store import ClientStore
from afspl_jax.federation.privacy.update_clipping import clipping_of
from afspl_jax.federation.secure.site import masking_of
from afspl_jax.federation.server.aggregation import aggregation_of
from afspl_jax.federation.server.rounds import SILENT, Plan, Progress
from afspl_jax.federation.server.server_app import run_local
from afspl_jax.reporting.tensorboard import TensorBoard
from afspl_jax.runs.final_scores import score_finished
from afspl_jax.runs.prepare import SPLITS, Setup, find, keep_compiled, prepare
from afspl_jax.runs.progress_bar import ProgressBar
from afspl_jax.runs.validate import check
from afspl_jax.storage.checkpoints import Checkpoints
from afspl_jax.storage.run_folder import RunFolder
from afspl_jax.types import Params

# Runs a plan's rounds on some Grid, and returns the params to score.
Carrier = Callable[[Setup, Plan, Progress], Params]

# Scores of the params after a round; None: the round is not scored.
Evaluate = Callable[[int, Params], dict[str, float] | None]

HEADLINE = ("cider", "bleu4", "rouge_l", "vqa_accuracy", "loss")


def never(round: int, params: Params) -> None:
  """Scores no round."""


def plan_of(
  setup: Setup, folder: RunFolder, checkpoints: Checkpoints, evaluate: Evaluate = never
) -> Plan:
  """The rounds of an experiment as its config says."""
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
  """Every client in this process, over one copy of the frozen models."""
  assert setup.trainer is not None, "there are clients here"
  taking_part = len(setup.clients["train"]) - setup.config.fed.newcomers
  trainer = malicious.with_attack(setup.trainer, setup.malicious, setup.config.attack)
  clipping = clipping_of(setup.config, plan.folder.path / "clients")
  return run_local(plan, trainer, taking_part, clipping, masking_of(setup.config), progress)


def federate(
  config: Experiment,
  workdir: Path,
  progress: Callable[..., tqdm] = tqdm,
  say: Callable[[str], None] = tqdm.write,
  carry: Carrier = in_process,
  splits: Sequence[str] = SPLITS,
) -> dict[str, dict[str, Any]]:
  """Runs an experiment, or what is left of it, and scores its last prompter on the test split.

  Args:
    config: the experiment.
    workdir: the run's folder; a run in it with the same config goes on.
    progress: makes the progress bar.
    say: tells the user what is about to run, and what happens to sites elsewhere.
    carry: brings the rounds to the clients.
    splits: what this process reads; without "train" its clients are elsewhere.

  Returns:
    The lines of metrics.jsonl about the test split, by their name for it.

  Raises:
    UserError: a user's mistake, in one clear message.
    RoundFailed: too few clients gave a valid reply.
  """
  check(config)
  keep_compiled()
  inputs = find(config, splits)
  with RunFolder.open(workdir, to_dict(config)) as folder, TensorBoard(folder.path) as board:
    setup = prepare(config, inputs, ClientStore(folder.path / "clients"))
    folder.require_same(setup.facts)
    if setup.clients:
      examples = {name: split.examples for name, split in setup.splits.items()}
      how = config.data, config.seed, setup.facts["data"]
      record(folder.path, examples, setup.clients, *how)
    folder.record_place({"devices": _devices()})
    say(_summary(setup))
    checkpoints = Checkpoints(folder.path / "checkpoints")
    validation = setup.splits["validation"]
    scored = spread(len(validation), config.eval.val_examples)
    pictures = inputs.sources["validation"]
    networked = setup.trainer is None
    bar = ProgressBar(config.fed.rounds, board, pictures, networked, progress, say)

    def evaluate(round: int, shared: Params) -> dict[str, float] | None:
      if round % config.eval.every and round != config.fed.rounds:
        return None
      file = folder.predictions_file(round)
      return setup.evaluator.scores(setup.whole(shared), validation, scored, file)

    try:
      shared = carry(setup, plan_of(setup, folder, checkpoints, evaluate), bar)
    finally:
      checkpoints.close()
      bar.close()
    if setup.trainer and setup.trainer.private_batches:
      say(setup.trainer.private_batches.spent_text())
    scores = score_finished(setup, folder, shared, progress)
    board.update(pictures)
    return scores


def _devices() -> str:
  devices = jax.local_devices()
  return f"{len(devices)} x {devices[0].device_kind}"


def _summary(setup: Setup) -> str:
  config = setup.config
  if setup.clients:
    sizes = [len(rows) for rows in setup.clients["train"].values()]
    who = f"{len(sizes)} clients with {min(sizes)} to {max(sizes)} examples"
    who += f" ({config.data.partition})"
    if setup.malicious:
      who += f", {len(setup.malicious)} of them hostile ({config.attack.kind})"
  else:
    who = f"{config.data.num_clients} sites on other hosts"
  travels, stays = (
    sum(leaf.size for leaf in jax.tree.leaves(leaves)) for leaves in (setup.shared, setup.own)
  )
  return (
    f"{who}, {config.fed.rounds} rounds of {config.fed.strategy}; of {travels + stays:,} trainable"
    f" parameters {stays:,} never leave their client; a frozen {config.backbone.t5} T5;"
    f" {_devices()}"
  )
