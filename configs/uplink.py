"""Bytes sent against CIDEr, where clients differ strongly.

`afspl ablate configs/uplink.py --workdir=runs/uplink`
"""

from typing import Any

from afspl_jax.config import Data, Eval, Experiment, Fed, Study, Uplink

SEEDS = (0, 1, 2)


def get_config() -> Experiment:
  return Experiment(
    data=Data(partition="dirichlet", dirichlet_alpha=0.1),
    eval=Eval(every=Fed.rounds, val_examples=50, test_examples=500, common_examples=60),
  )


def get_study() -> Study:
  variants: dict[str, dict[str, Any]] = {"dense": {"uplink.select": "dense"}}
  for select, shares in {"energy": (0.2, 0.4, 0.6, 0.8), "ratio": (0.2, 0.35, 0.5)}.items():
    for share in shares:
      variants[f"{select} {share}"] = {"uplink.select": select, f"uplink.{select}": share}
  usual = {"uplink.select": "energy", "uplink.energy": Uplink.energy}
  name = f"energy {Uplink.energy}"
  variants |= {
    f"{name}, averaged over all": {**usual, "uplink.weighing": "cohort"},
    f"{name}, feedback added": {**usual, "uplink.error_feedback": "add"},
    f"{name}, no feedback": {**usual, "uplink.error_feedback": "none"},
  }
  # Dense FedAvg at its own best learning rates, not only at ours. A row that few sites sent moves
  # farther than in an average of all sites, as with a larger server learning rate.
  for rate in (0.1, 0.6):
    rates = {"optim.prompt_lr": rate, "optim.local_lr": rate}
    variants[f"dense, prompts' rate {rate}"] = {"uplink.select": "dense", **rates}
  for rate in (1.5, 2):
    strategy = f"fedavgm:server_lr={rate},momentum=0"
    variants[f"dense, server's rate {rate}"] = {"uplink.select": "dense", "fed.strategy": strategy}
  return Study(
    base=get_config(),
    settings={"Dirichlet 0.1": {}},
    variants=variants,
    seeds=SEEDS,
    reference="dense",
    full=name,
  )
