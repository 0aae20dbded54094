"""What a site gains by joining, by its size: alone, FedAvg, FedAvg and fine-tuning, AFSPL.

`afspl ablate configs/site_size.py --workdir=runs/site_size`
"""

from afspl_jax.config import Data, Eval, Experiment, Fed, Study

CLIENTS = 10
TUNED = 12  # of all rounds, where a method fine-tunes
SEEDS = (0, 1, 2, 3, 4)
FEWER_SEEDS = (0, 1, 2)
SKEWED = {"data.partition": "dirichlet", "data.dirichlet_alpha": 0.1}
# Each baseline has its own weight decay: the best of 0, 0.03 and 0.1 on validation.
DENSE = {
  "prompter.local": False,
  "prompter.routing": "none",
  "uplink.select": "dense",
  "optim.weight_decay": 0.0,
}


def get_config() -> Experiment:
  return Experiment(
    data=Data(num_clients=CLIENTS),
    fed=Fed(clients_per_round=CLIENTS),
    eval=Eval(every=Fed.rounds, val_examples=50, test_examples=500, common_examples=60),
  )


def get_study() -> Study:
  return Study(
    base=get_config(),
    settings={
      "natural, 32 examples": {"data.max_examples": 32},
      "natural, 100 examples": {"data.max_examples": 100},
      "natural, 300 examples": {"data.max_examples": 300},
      "natural, all examples": {},
      "Dirichlet 0.1, 32 examples": {**SKEWED, "data.max_examples": 32},
      "Dirichlet 0.1, all examples": SKEWED,
    },
    variants={
      "alone": {"fed.share": "none", "prompter.local": False, "optim.weight_decay": 0.1},
      "dense FedAvg": DENSE,
      # As many local steps as the others.
      "FedAvg, fine-tuned": {**DENSE, "fed.rounds": Fed.rounds - TUNED, "fed.finetune": TUNED},
      "AFSPL": {},
      "AFSPL, fine-tuned": {"fed.rounds": Fed.rounds - TUNED, "fed.finetune": TUNED},
    },
    seeds=SEEDS,
    fewer_seeds={
      "Dirichlet 0.1, 32 examples": FEWER_SEEDS,
      "Dirichlet 0.1, all examples": FEWER_SEEDS,
    },
    full="AFSPL",
    alone="alone",
  )
