"""What sending less costs: bytes against CIDEr, where clients differ much.

`afspl ablate configs/uplink.py --workdir=runs/uplink`
"""

from typing import Any

from afspl_jax.config import Data, Eval, Experiment, Fed
from afspl_jax.study import Study

ROUNDS = 30
SEEDS = (0, 1, 2)


def get_config() -> Experiment:
  return Experiment(
    data=Data(partition="dirichlet", dirichlet_alpha=0.1),
    fed=Fed(rounds=ROUNDS),
    eval=Eval(every=ROUNDS),
  )


def get_study() -> Study:
  variants: dict[str, dict[str, Any]] = {"dense": {"uplink.select": "dense"}}
  shares = [("energy", share) for share in (0.5, 0.7, 0.9)]
  shares += [("ratio", share) for share in (0.1, 0.2, 0.35, 0.5)]
  for select, share in shares:
    for weighing in ("coverage", "cohort"):
      for feedback in (True, False):
        name = f"{select} {share}, {weighing}{'' if feedback else ', no feedback'}"
        variants[name] = {
          "uplink.select": select,
          f"uplink.{select}": share,
          "uplink.weighing": weighing,
          "uplink.error_feedback": feedback,
        }
  return Study(
    base=get_config(),
    settings={"Dirichlet 0.1": {}},
    variants=variants,
    seeds=SEEDS,
    reference="dense",
    full="energy 0.9, coverage",
  )
