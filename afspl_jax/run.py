"""An experiment from its config to its scores, in this process."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from afspl_jax.backbones.locate import MissingBackbone, locate
from afspl_jax.backbones.processing import ImageProcessor, Tokenizer
from afspl_jax.backbones.weights import fingerprint, load_clip, load_t5
from afspl_jax.captioner import Captioner, leaves
from afspl_jax.checkpoint import Checkpoints
from afspl_jax.config import Experiment, choice, digest, to_dict
from afspl_jax.data.batches import Split
from afspl_jax.data.features import FeatureEncoder, default_cache
from afspl_jax.data.partition import Clients, partition
from afspl_jax.data.sources import open_source
from afspl_jax.data.tfds_source import MissingData
from afspl_jax.errors import UserError
from afspl_jax.evaluate import Evaluator, spread
from afspl_jax.federation import strategies
from afspl_jax.federation.rounds import Plan, RoundReport
from afspl_jax.federation.server import run_local
from afspl_jax.federation.training import LocalTrainer
from afspl_jax.prompts.prompter import Prompter
from afspl_jax.run_folder import RunFolder
from afspl_jax.step import make_mesh, replicate
from afspl_jax.types import Params, Source

SPLITS = ("train", "validation", "test")
HEADLINE = ("cider", "bleu4", "rouge_l", "vqa_accuracy", "loss")


class Inputs(NamedTuple):
  """What a run reads."""

  folders: dict[str, Path]  # checkpoint folders of "clip" and "t5"
  sources: dict[str, Source]  # opened splits


@dataclass(frozen=True)
class Setup:
  """All that a run needs before its first round."""

  config: Experiment
  params: Params  # of the untrained prompter, NumPy leaves
  splits: dict[str, Split]
  clients: Clients
  trainer: LocalTrainer
  evaluator: Evaluator
  facts: dict[str, Any]  # hashes that must not change when a run goes on


def prepare(config: Experiment, inputs: Inputs, mesh: Mesh | None = None) -> Setup:
  """Loads backbones, encodes images, splits examples over clients, builds programs.

  Args:
    config: the experiment.
    inputs: from `find`.
    mesh: devices that share a batch; default all local ones.

  Raises:
    UserError: something does not fit.
  """
  mesh = mesh or make_mesh()
  folders, sources = inputs
  dtype = jnp.dtype(config.backbone.dtype)
  clip = load_clip(folders["clip"], dtype, dtype)
  t5 = load_t5(folders["t5"], dtype, dtype)
  tokenizer = Tokenizer(folders["t5"])
  clients = partition(
    [sources["train"][i] for i in range(len(sources["train"]))], config.data, config.seed
  )

  prints = {kind: fingerprint(folder) for kind, folder in folders.items()}
  encoder = FeatureEncoder(
    clip,
    ImageProcessor(folders["clip"]),
    Tokenizer(folders["clip"]),
    prints["clip"],
    default_cache(),
  )
  splits = {
    name: Split(source, encoder, tokenizer, config.data) for name, source in sources.items()
  }

  words, _ = tokenizer.tokenize([config.prompter.init_text], 256)
  words = words[words > max(tokenizer.pad_id, tokenizer.eos_id)]
  prompter = Prompter(
    config.prompter, clip.config, t5.embedding[...], jnp.asarray(words), rngs=nnx.Rngs(config.seed)
  )
  captioner = Captioner(prompter, t5)
  frozen = replicate(leaves(t5), mesh)
  penalty = strategies.get(config.fed.strategy).client_penalty
  trainer = LocalTrainer(captioner, frozen, splits["train"], clients, config, penalty, mesh)
  return Setup(
    config=config,
    params=jax.device_get(leaves(prompter)),
    splits=splits,
    clients=clients,
    trainer=trainer,
    evaluator=Evaluator(captioner, frozen, tokenizer, config.eval, mesh),
    facts={
      "backbones": prints,
      "data": {name: source.fingerprint for name, source in sources.items()},
      "partition": digest({name: indices.tolist() for name, indices in clients.items()}),
    },
  )


def federate(
  config: Experiment,
  workdir: Path,
  progress: Callable[..., tqdm] = tqdm,
  say: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Runs an experiment, or what is left of it, and scores its last prompter on the test split.

  Args:
    config: the experiment.
    workdir: the run's folder; a run in it with the same config goes on.
    progress: makes the progress bar.
    say: tells the user what is about to run.

  Returns:
    The "test" line of metrics.jsonl.

  Raises:
    UserError: a user's mistake, in one clear message.
    RoundFailed: too few clients gave a valid reply.
  """
  check(config)
  inputs = find(config)
  bar: tqdm | None = None
  with RunFolder.open(workdir, to_dict(config)) as folder:
    setup = prepare(config, inputs)
    folder.agree_on(setup.facts)
    say(_summary(setup))
    checkpoints = Checkpoints(folder.path / "checkpoints")
    validation = setup.splits["validation"]
    scored = spread(len(validation), config.eval.val_examples)
    last = {"loss": "-", "CIDEr": "-"}

    def evaluate(round: int, params: Params) -> dict[str, float] | None:
      if round % config.eval.every and round != config.fed.rounds:
        return None
      file = folder.predictions(round)
      return setup.evaluator.scores(params, validation, scored, file)

    def on_round(report: RoundReport) -> None:
      nonlocal bar
      if bar is None:
        bar = progress(total=config.fed.rounds, initial=report.round, unit="round", desc="rounds")
      else:
        bar.update(1)
      if report.train:
        last["loss"] = f"{report.train['loss']:.3f}"
      if report.val and "cider" in report.val:
        last["CIDEr"] = f"{report.val['cider']:.3f}"
      bar.set_postfix(last)
      for line in report.clients:
        if line["status"] != "ok":
          bar.write(f"round {report.round}: {line['client']}: {line['status']}")

    plan = Plan(
      params=setup.params,
      strategy=strategies.get(config.fed.strategy),
      fed=config.fed,
      seed=config.seed,
      folder=folder,
      checkpoints=checkpoints,
      evaluate=evaluate,
      on_round=on_round,
    )
    try:
      params = run_local(plan, setup.trainer, len(setup.clients))
    finally:
      checkpoints.close()
      if bar is not None:
        bar.close()
    return _test(setup, folder, params)


def _summary(setup: Setup) -> str:
  config, sizes = setup.config, [len(indices) for indices in setup.clients.values()]
  trainable = sum(leaf.size for leaf in jax.tree.leaves(setup.params))
  devices = jax.local_devices()
  return (
    f"{len(sizes)} clients with {min(sizes)} to {max(sizes)} examples ({config.data.partition}),"
    f" {config.fed.rounds} rounds of {config.fed.strategy}; {trainable:,} trainable parameters"
    f" before a frozen {config.backbone.t5} T5; {len(devices)} x {devices[0].device_kind}"
  )


def _test(setup: Setup, folder: RunFolder, params: Params) -> dict[str, Any]:
  """The test line: the one on disk, if an earlier start of this run got that far."""
  for line in folder.metrics():
    if line["split"] == "test":
      return line
  config, split = setup.config, setup.splits["test"]
  rows = spread(len(split), config.eval.test_examples)
  file = folder.path / "predictions" / "test.jsonl"
  begin = time.perf_counter()
  scores = setup.evaluator.scores(params, split, rows, file)
  trained = [line for line in folder.metrics() if line["split"] == "train"]
  line = {
    "round": config.fed.rounds,
    "split": "test",
    **scores,
    "bytes_up": sum(line["bytes_up"] for line in trained),
    "bytes_down": sum(line["bytes_down"] for line in trained),
    "seconds": round(time.perf_counter() - begin, 3),
    "clients": trained[-1]["clients"] if trained else 0,
  }
  folder.append_metrics(line)
  return line


def check(config: Experiment) -> None:
  """Refuses values that no later layer would name as well.

  Raises:
    UserError: naming the field, what it may be, and what it is.
  """
  choice("backbone.dtype", config.backbone.dtype, ("float32", "bfloat16"))
  for name, value in {
    "fed.clients_per_round": config.fed.clients_per_round,
    "fed.min_replies": config.fed.min_replies,
    "eval.every": config.eval.every,
    "eval.batch_size": config.eval.batch_size,
    "eval.max_tokens": config.eval.max_tokens,
    "optim.batch_size": config.optim.batch_size,
    "optim.local_steps": config.optim.local_steps,
    "prompter.tokens": config.prompter.tokens,
    "prompter.key_dim": config.prompter.key_dim,
    "prompter.fusion_hidden": config.prompter.fusion_hidden,
    "prompter.mapper_hidden": config.prompter.mapper_hidden,
    "prompter.patch_pool": config.prompter.patch_pool,
    "data.num_clients": config.data.num_clients,
    "data.instruction_length": config.data.instruction_length,
    "data.target_length": config.data.target_length,
  }.items():
    if value < 1:
      raise UserError(f"{name}: expected at least 1; got {value}")
  for name, number in {
    "prompter.temperature": config.prompter.temperature,
    "prompter.pool_mass": config.prompter.pool_mass,
    "data.dirichlet_alpha": config.data.dirichlet_alpha,
    "optim.prompt_lr": config.optim.prompt_lr,
    "optim.gate_lr": config.optim.gate_lr,
    "optim.mapper_lr": config.optim.mapper_lr,
    "optim.clip_norm": config.optim.clip_norm,
  }.items():
    if not (math.isfinite(number) and number > 0):
      raise UserError(f"{name}: expected a finite number above 0; got {number}")
  if config.fed.clients_per_round > config.data.num_clients:
    raise UserError(
      f"fed.clients_per_round: expected at most data.num_clients, {config.data.num_clients};"
      f" got {config.fed.clients_per_round}"
    )
  for name, value in {"seed": config.seed, "fed.rounds": config.fed.rounds}.items():
    if value < 0:
      raise UserError(f"{name}: expected 0 or more; got {value}")


def find(config: Experiment) -> Inputs:
  """Looks for all that a run reads; quick, but for a data set that has yet to be drawn.

  Raises:
    UserError: naming everything that is missing, not only the first thing.
  """
  missing, folders, sources = [], {}, {}
  for kind in ("clip", "t5"):
    try:
      folders[kind] = locate(getattr(config.backbone, kind), kind)
    except MissingBackbone as error:
      missing.append(str(error))
  try:
    for split in SPLITS:
      sources[split] = open_source(config.data.source, split, config.data.dir)
  except MissingData as error:
    missing.append(str(error))
  if missing:
    raise UserError("this experiment needs what is not on this machine\n" + "\n".join(missing))
  return Inputs(folders, sources)
