"""Every part of AFSPL switched off in turn, and its baselines, in four kinds of heterogeneity.

`afspl ablate configs/ablation.py --workdir=runs/ablation`
"""

from afspl_jax.config import Data, Eval, Experiment, Fed, Optim, Study

CLIENTS = 10
SEEDS = (0, 1, 2, 3, 4)
FEWER_SEEDS = (0, 1, 2)
CLAIMED = ("local-only", "dense FedAvg", "full AFSPL", "8 sites, then 2 new ones")  # with all seeds

# Where sites do not matter, all settings need the same run, which is made once.
NO_SITES = {
  "data.partition": "iid",
  "data.dirichlet_alpha": Data.dirichlet_alpha,
  "prompter.local": False,
  "prompter.routing": "none",
}
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
  variants = {
    "zero-shot": {**NO_SITES, "fed.rounds": 0},
    "local-only": {"fed.share": "none", "prompter.local": False, "optim.weight_decay": 0.1},
    # As many steps as a site takes, each over as many examples as all sites together.
    "centralised": {
      **NO_SITES,
      "data.num_clients": 1,
      "fed.clients_per_round": 1,
      "optim.batch_size": CLIENTS * Optim.batch_size,
      "uplink.select": "dense",
    },
    "dense FedAvg": DENSE,
    "full AFSPL": {},
    "- local prompts": {"prompter.local": False},
    "- prompts of sites": {"prompter.routing": "none"},
    "- local prompts and prompts of sites": {
      "prompter.local": False,
      "prompter.routing": "none",
    },
    "- sparse uplink": {"uplink.select": "dense"},
    "- adaptive k (fixed)": {"prompter.pool_mode": "fixed"},
    "- adaptive k (dense)": {"prompter.pool_mode": "dense"},
    "- pool (one prompt)": {"prompter.pool": 1, "prompter.k_max": 1},
    "- dynamic fusion (learned)": {"prompter.fusion": "learned"},
    "- load balance": {"optim.balance": 0.0},
    "- image": {"prompter.see_image": False},
    "8 sites, then 2 new ones": {
      "fed.newcomers": 2,
      "fed.newcomer_examples": 32,
      "fed.clients_per_round": 8,
    },
  }
  return Study(
    base=get_config(),
    settings={
      "iid": {"data.partition": "iid"},
      "Dirichlet 0.5": {"data.partition": "dirichlet", "data.dirichlet_alpha": 0.5},
      "Dirichlet 0.1": {"data.partition": "dirichlet", "data.dirichlet_alpha": 0.1},
      "natural": {"data.partition": "natural"},
    },
    variants=variants,
    seeds=SEEDS,
    fewer_seeds={name: FEWER_SEEDS for name in variants if name not in CLAIMED},
  )
