"""Why a global model of different sites is hard: local steps between averages, at equal samples.

`afspl ablate configs/drift.py --workdir=runs/drift`
"""

from typing import Any

from afspl_jax.config import Data, Eval, Experiment, Fed, Study

CLIENTS = 10
STEPS, WARMUP = 192, 16  # local steps of every site in all, and those in which rates grow
NO_SITES = {"prompter.routing": "none"}


def get_config() -> Experiment:
  return Experiment(
    data=Data(num_clients=CLIENTS),
    fed=Fed(clients_per_round=CLIENTS),
    eval=Eval(every=STEPS, val_examples=50, test_examples=500, common_examples=60),
  )


def get_study() -> Study:
  variants: dict[str, dict[str, Any]] = {}
  for local_steps in (1, 2, 4, 8, 16):
    cut = {
      "fed.rounds": STEPS // local_steps,
      "optim.local_steps": local_steps,
      "optim.warmup_rounds": WARMUP / local_steps,
    }
    variants[f"AFSPL, {local_steps} local steps"] = cut
    variants[f"no prompts of sites, {local_steps} local steps"] = {**cut, **NO_SITES}
  return Study(
    base=get_config(),
    settings={"natural": {}},
    variants=variants,
    seeds=(0, 1, 2),
    reference="AFSPL, 4 local steps",
    full="AFSPL, 4 local steps",
  )
