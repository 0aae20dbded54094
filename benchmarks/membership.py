"""`python -m benchmarks.membership`: membership inference attacks on a trained federation.

A few clients with few examples train long enough to memorise them; other clients with examples of
the same distribution do not train. The attacker has an example and guesses whether it was in the
training data.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from afspl_jax.config.experiment import Experiment, to_dict
from afspl_jax.config.fields import changed
from afspl_jax.data.batches import Split
from afspl_jax.federation.client.client_store import ClientStore
from afspl_jax.models.captioner import Captioner, module_leaves
from afspl_jax.runs.frozen import load_pair, make_prompter
from afspl_jax.runs.prepare import (
  SITE_SPLITS,
  Setup,
  enable_compilation_cache,
  find_inputs,
  prepare_setup,
)
from afspl_jax.runs.run import in_process, plan_of
from afspl_jax.runs.validate import validate
from afspl_jax.storage.checkpoints import Checkpoints
from afspl_jax.storage.run_folder import RunFolder
from afspl_jax.types import Batch, Params
from benchmarks.attacks import Success, success

CLIENTS = 8  # participating clients
BASE: dict[str, Any] = {
  "data.partition": "iid",
  "data.num_clients": 200,
  "fed.newcomers": 200 - CLIENTS,
  "fed.clients_per_round": CLIENTS,
  "fed.rounds": 8,
  "optim.batch_size": 8,
  "optim.local_steps": 16,
  "optim.balance": 0.0,
  "optim.warmup_rounds": 1.0,
  "optim.weight_decay": 0.0,
  "prompter.routing": "none",
  "uplink.select": "dense",
  "privacy.delta": 1e-3,
}
SETTINGS: dict[str, dict[str, Any]] = {
  "without privacy": {},
  "DP-SGD, noise 0.7": {"privacy.example_clip": 0.1, "privacy.example_noise": 0.7},
  "DP-SGD, noise 4": {"privacy.example_clip": 0.1, "privacy.example_noise": 4.0},
  "central DP, noise 1": {"privacy.dp": "central", "privacy.noise": 1.0},
}


class Scores(NamedTuple):
  """Scores of examples by attack; a higher score means a likelier member."""

  loss: Float[np.ndarray, " n"]  # Yeom et al. 2018: minus the loss by the global prompter
  shadow: Float[np.ndarray, " n"]  # Watson et al. 2022: loss without the example minus loss
  update: Float[np.ndarray, " n"]  # decrease of the loss by a client's update


class AttackedRun(NamedTuple):
  """One run, and the examples to attack."""

  setup: Setup
  params: Params  # public: all leaves, with untrained local ones
  members: Int[np.ndarray, " m"]  # examples of the participating clients
  others: Int[np.ndarray, " n"]  # some examples of the other clients
  sent: Params  # one client's update in one more round, at the last learning rates
  its: Int[np.ndarray, " k"]  # that client's examples
  epsilon: float  # for an example or for a client; inf without privacy


class LossReader:
  """Computes the loss of examples under any prompter."""

  def __init__(self, config: Experiment):
    pair = load_pair(config, find_inputs(config, SITE_SPLITS).folders)
    captioner = Captioner(make_prompter(config, pair, contrast=False), pair.language_model)
    self._frozen = module_leaves(pair.language_model)

    @jax.jit
    def nats(params: Params, frozen: Params, batch: Batch) -> Float[Array, " b"]:
      encoded = captioner.encode(params, frozen, batch)
      log_probs = jax.nn.log_softmax(captioner.logits(frozen, encoded, batch.targets))
      chosen = jnp.take_along_axis(log_probs, batch.targets[..., None], axis=-1)[..., 0]
      return -jnp.sum(chosen * batch.targets_mask, axis=1) / jnp.sum(batch.targets_mask, axis=1)

    self._nats = nats

  def losses(
    self, params: Params, split: Split, rows: Int[np.ndarray, " n"], size: int = 64
  ) -> Float[np.ndarray, " n"]:
    """Returns the loss in nats per token, averaged over an example's references."""
    texts = [(row, i) for row in rows for i in range(len(split.examples[row].references))]
    out = np.zeros(len(split))
    for start in range(0, len(texts), size):
      part = np.array(texts[start : start + size])
      batch = split.batch(part[:, 0], size, part[:, 1])
      nats = np.asarray(self._nats(params, self._frozen, batch))[: len(part)]
      counts = [len(split.examples[row].references) for row in part[:, 0]]
      np.add.at(out, part[:, 0], nats / counts)
    return out[rows]


def train(config: Experiment, folder: Path, others: int) -> AttackedRun:
  """Trains the first clients; `others` examples of the remaining ones are non-members."""
  validate(config)
  with RunFolder.open(folder, to_dict(config)) as opened:
    setup = prepare_setup(config, find_inputs(config, SITE_SPLITS), ClientStore(folder / "clients"))
    checkpoints = Checkpoints(folder / "checkpoints")
    shared = in_process(setup, plan_of(setup, opened, checkpoints))
    checkpoints.close()
    last = opened.metrics()[-1]
  assert setup.trainer is not None, "there are clients here"
  epsilon = last.get("epsilon", np.inf)
  if setup.trainer.private_batches:
    epsilon = max(
      setup.trainer.private_batches.epsilon(setup.trainer.site(i)) for i in range(CLIENTS)
    )
  parts = [setup.clients["train"][name] for name in sorted(setup.clients["train"])]
  rng = np.random.default_rng(config.seed)
  return AttackedRun(
    setup,
    setup.global_params(shared),
    np.concatenate(parts[:CLIENTS]),
    rng.permutation(np.concatenate(parts[CLIENTS:]))[:others],
    setup.global_params(setup.trainer.train(shared, 0, config.fed.rounds).params),
    parts[0],
    float(epsilon),
  )


def attack(
  runs: Sequence[AttackedRun], reader: LossReader
) -> tuple[dict[str, Success], dict[str, float]]:
  """Returns the success of each attack over all runs, and the mean losses."""
  split = runs[0].setup.splits["train"]
  scores: dict[str, list[Scores]] = {"members": [], "others": []}
  for run in runs:
    for kind, rows in (("members", run.members), ("others", run.others)):
      now = reader.losses(run.params, split, rows)
      shadows = [other for other in runs if other is not run]
      out = np.array([~np.isin(rows, other.members) for other in shadows])
      there = np.array([reader.losses(other.params, split, rows) for other in shadows])
      some = out.any(axis=0)
      without = np.sum(there * out, axis=0)[some] / out.sum(axis=0)[some]
      its = run.its if kind == "members" else rows
      update = reader.losses(run.params, split, its) - reader.losses(run.sent, split, its)
      scores[kind].append(Scores(-now, without - now[some], update))
  found = {}
  for name in Scores._fields:
    found[name] = success(*(np.concatenate([getattr(s, name) for s in scores[k]]) for k in scores))
  losses = {k: -float(np.concatenate([s.loss for s in scores[k]]).mean()) for k in scores}
  return found, losses


def main() -> None:
  """Prints a table with a line for each setting and attack."""
  parser = argparse.ArgumentParser(prog="python -m benchmarks.membership", description=__doc__)
  parser.add_argument("--seeds", type=int, default=3, help="runs per setting, at least 2")
  parser.add_argument("--others", type=int, default=400, help="non-member examples per run")
  parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
  parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="other settings")
  parser.add_argument("--out", type=Path, default=Path("membership.json"))
  args = parser.parse_args()
  enable_compilation_cache()
  more = {name: json.loads(value) for name, _, value in (pair.partition("=") for pair in args.set)}
  found, reader = {}, None
  print("| setting | epsilon | loss: members, others | attack | AUC | TPR at 1% FPR | accuracy |")
  print("| --- | --- | --- | --- | --- | --- | --- |")
  for setting in args.only:
    runs = []
    for seed in range(args.seeds):
      config = changed(Experiment(), BASE | SETTINGS[setting] | more | {"seed": seed})
      with tempfile.TemporaryDirectory() as folder:
        runs.append(train(config, Path(folder), args.others))
      reader = reader or LossReader(config)
    successes, losses = attack(runs, reader)
    epsilon = runs[0].epsilon
    found[setting] = {"epsilon": epsilon if np.isfinite(epsilon) else None, "losses": losses}
    for name, each in successes.items():
      found[setting][name] = each._asdict()
      print(
        f"| {setting} | {epsilon:.3g} | {losses['members']:.3f}, {losses['others']:.3f} |"
        f" {name} | {each.auc:.3f} | {each.tpr:.3f} | {each.accuracy:.3f} |",
        flush=True,
      )
    args.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
  main()
