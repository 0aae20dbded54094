"""`python -m benchmarks.membership`: can it be told which examples a federation was trained on?

A few clients with few examples each train long enough to learn them by heart; others with examples
of the same kind train nothing. An adversary has an example and asks whether it was trained on.
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
from afspl_jax.models.captioner import Captioner, leaves
from afspl_jax.runs.frozen import load_pair, make_prompter
from afspl_jax.runs.prepare import TRAINED, Setup, find, keep_compiled, prepare
from afspl_jax.runs.run import in_process, plan_of
from afspl_jax.runs.validate import check
from afspl_jax.storage.checkpoints import Checkpoints
from afspl_jax.storage.run_folder import RunFolder
from afspl_jax.types import Batch, Params
from benchmarks.attacks import Success, success

CLIENTS = 8  # that take part
BASE: dict[str, Any] = {
  "data.partition": "iid",
  "data.num_clients": 200,
  "fed.newcomers": 200 - CLIENTS,
  "fed.clients_per_round": CLIENTS,
  "fed.rounds": 8,
  "optim.batch_size": 8,
  "optim.local_steps": 16,
  "optim.balance": 0.0,
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
  """What each attack gives to examples: higher where it takes them for members."""

  loss: Float[np.ndarray, " n"]  # Yeom et al. 2018: how little the global prompter loses
  shadow: Float[np.ndarray, " n"]  # Watson et al. 2022: how much less than where it had no part
  update: Float[np.ndarray, " n"]  # how much less a client's update loses than what it started from


class Trained(NamedTuple):
  """One run, and whom to attack."""

  setup: Setup
  params: Params  # what everyone sees: all leaves, the own ones untrained
  members: Int[np.ndarray, " m"]  # examples of all who took part
  others: Int[np.ndarray, " n"]  # of some of those who did not
  sent: Params  # what one client would send in one more round, at the last one's rates
  its: Int[np.ndarray, " k"]  # the examples of that client
  epsilon: float  # of an example, or of a client; inf without privacy


class Reader:
  """Each example's loss under any prompter."""

  def __init__(self, config: Experiment):
    pair = load_pair(config, find(config, TRAINED).folders)
    captioner = Captioner(make_prompter(config, pair, contrast=False), pair.language_model)
    self._frozen = leaves(pair.language_model)

    @jax.jit
    def nats(params: Params, frozen: Params, batch: Batch) -> Float[Array, " b"]:
      encoded = captioner.encode(params, frozen, batch)
      chances = jax.nn.log_softmax(captioner.logits(frozen, encoded, batch.targets))
      said = jnp.take_along_axis(chances, batch.targets[..., None], axis=-1)[..., 0]
      return -jnp.sum(said * batch.targets_mask, axis=1) / jnp.sum(batch.targets_mask, axis=1)

    self._nats = nats

  def losses(
    self, params: Params, split: Split, rows: Int[np.ndarray, " n"], size: int = 64
  ) -> Float[np.ndarray, " n"]:
    """Nats a token, the mean over the example's references."""
    texts = [(row, i) for row in rows for i in range(len(split.examples[row].references))]
    out = np.zeros(len(split))
    for start in range(0, len(texts), size):
      part = np.array(texts[start : start + size])
      batch = split.batch(part[:, 0], size, part[:, 1])
      nats = np.asarray(self._nats(params, self._frozen, batch))[: len(part)]
      counts = [len(split.examples[row].references) for row in part[:, 0]]
      np.add.at(out, part[:, 0], nats / counts)
    return out[rows]


def train(config: Experiment, folder: Path, others: int) -> Trained:
  """A federation of the first clients; `others` examples of the rest stand for those not seen."""
  check(config)
  with RunFolder.open(folder, to_dict(config)) as opened:
    setup = prepare(config, find(config, TRAINED), ClientStore(folder / "clients"))
    checkpoints = Checkpoints(folder / "checkpoints")
    shared = in_process(setup, plan_of(setup, opened, checkpoints))
    checkpoints.close()
    last = opened.metrics()[-1]
  assert setup.trainer is not None, "there are clients here"
  epsilon = last.get("epsilon", np.inf)
  if setup.trainer.secret:
    epsilon = max(setup.trainer.secret.epsilon(setup.trainer.site(i)) for i in range(CLIENTS))
  parts = [setup.clients["train"][name] for name in sorted(setup.clients["train"])]
  rng = np.random.default_rng(config.seed)
  return Trained(
    setup,
    setup.whole(shared),
    np.concatenate(parts[:CLIENTS]),
    rng.permutation(np.concatenate(parts[CLIENTS:]))[:others],
    setup.whole(setup.trainer.train(shared, 0, config.fed.rounds).params),
    parts[0],
    float(epsilon),
  )


def attack(runs: Sequence[Trained], reader: Reader) -> tuple[dict[str, Success], dict[str, float]]:
  """Each attack's success over the examples of all runs, and what they lose on average."""
  split = runs[0].setup.splits["train"]
  told: dict[str, list[Scores]] = {"members": [], "others": []}
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
      told[kind].append(Scores(-now, without - now[some], update))
  found = {}
  for name in Scores._fields:
    found[name] = success(*(np.concatenate([getattr(s, name) for s in told[k]]) for k in told))
  losses = {k: -float(np.concatenate([s.loss for s in told[k]]).mean()) for k in told}
  return found, losses


def main() -> None:
  """Prints a table, a line a setting and attack."""
  parser = argparse.ArgumentParser(prog="python -m benchmarks.membership", description=__doc__)
  parser.add_argument("--seeds", type=int, default=3, help="runs a setting, 2 or more")
  parser.add_argument("--others", type=int, default=400, help="examples not trained on, a run")
  parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
  parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE")
  parser.add_argument("--out", type=Path, default=Path("membership.json"))
  args = parser.parse_args()
  keep_compiled()
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
      reader = reader or Reader(config)
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
