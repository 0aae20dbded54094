"""What a fifth of malicious sites does to the model, for each server strategy.

`afspl ablate configs/robustness.py --workdir=runs/robustness`

Every site sends all rows: the median of a row that few sites sent would be the median of these few.
"""

from typing import Any

from afspl_jax.config import Data, Eval, Experiment, Fed, Optim, Prompter, Study, Uplink

ROUNDS = 12
CLIENTS = 10
MALICIOUS = 0.2
NORM = 180.0  # 1.25 × the largest norm of an update without attack, in round 2 of 12
SEEDS = (0, 1, 2)


def get_config() -> Experiment:
  return Experiment(
    data=Data(num_clients=CLIENTS),
    prompter=Prompter(local=False, routing="none"),  # the attack is on the global model
    optim=Optim(local_steps=8, warmup_rounds=1.0, weight_decay=0.0),
    fed=Fed(rounds=ROUNDS, clients_per_round=CLIENTS),
    uplink=Uplink(select="dense"),
    eval=Eval(every=ROUNDS, val_examples=50, test_examples=500, common_examples=60),
  )


def get_study() -> Study:
  partitions: dict[str, dict[str, Any]] = {
    "iid": {"data.partition": "iid"},
    "Dirichlet 0.5": {"data.partition": "dirichlet", "data.dirichlet_alpha": 0.5},
  }
  attacks: dict[str, dict[str, Any]] = {"no attack": {}}
  for kind in ("sign_flip", "scale", "label_flip"):
    attacks[kind.replace("_", " ")] = {"attack.kind": kind, "attack.share": MALICIOUS}
  return Study(
    base=get_config(),
    settings={
      f"{where}, {what}": {**split, **attack}
      for where, split in partitions.items()
      for what, attack in attacks.items()
    },
    variants={
      "FedAvg": {},
      "norm bound": {"fed.max_update_norm": NORM},
      "median": {"fed.strategy": "median"},
      "trimmed mean": {"fed.strategy": "trimmed_mean:trim=0.2"},
      "Krum": {"fed.strategy": "krum:faulty=2"},
      "multi-Krum": {"fed.strategy": "krum:faulty=2,multi=6"},
    },
    seeds=SEEDS,
    reference="FedAvg",
    full="FedAvg",
  )
