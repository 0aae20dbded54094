"""Every part of AFSPL switched off in turn, and its baselines, in four kinds of heterogeneity.

`afspl ablate configs/ablation.py --workdir=runs/ablation`
"""

from afspl_jax.config import Data, Eval, Experiment, Fed, Optim, Prompter, Study

ROUNDS = 12
CLIENTS = 10
LOCAL_STEPS = 16
TEST_EXAMPLES = 500
SEEDS = (0, 1, 2)

# Where sites do not matter, all settings need the same run, which is made once.
NO_SITES = {"data.partition": "iid", "data.dirichlet_alpha": Data.dirichlet_alpha}


def get_config() -> Experiment:
  return Experiment(
    data=Data(num_clients=CLIENTS),
    prompter=Prompter(pool_mass=0.9),  # the default when this was measured
    optim=Optim(local_steps=LOCAL_STEPS),
    fed=Fed(rounds=ROUNDS, clients_per_round=CLIENTS),
    eval=Eval(every=ROUNDS, val_examples=50, test_examples=TEST_EXAMPLES, common_examples=60),
  )


def get_study() -> Study:
  return Study(
    base=get_config(),
    settings={
      "iid": {"data.partition": "iid"},
      "Dirichlet 0.5": {"data.partition": "dirichlet", "data.dirichlet_alpha": 0.5},
      "Dirichlet 0.1": {"data.partition": "dirichlet", "data.dirichlet_alpha": 0.1},
      "natural": {"data.partition": "natural"},
    },
    variants={
      "zero-shot": {**NO_SITES, "fed.rounds": 0, "prompter.local": False},
      "local-only": {"fed.share": "none", "prompter.local": False},
      "centralised": {
        **NO_SITES,
        "data.num_clients": 1,
        "fed.clients_per_round": 1,
        "optim.local_steps": CLIENTS * LOCAL_STEPS,
        "prompter.local": False,
        "uplink.select": "dense",
      },
      "dense FedAvg": {"prompter.local": False, "uplink.select": "dense"},
      "full AFSPL": {},
      "- local prompts": {"prompter.local": False},
      "- sparse uplink": {"uplink.select": "dense"},
      "- adaptive k (fixed)": {"prompter.pool_mode": "fixed"},
      "- adaptive k (dense)": {"prompter.pool_mode": "dense"},
      "adaptive k, mass 0.98": {"prompter.pool_mass": 0.98},
      "- pool (one prompt)": {"prompter.pool": 1, "prompter.k_max": 1},
      "- dynamic fusion (learned)": {"prompter.fusion": "learned"},
      "- dynamic fusion (static)": {"prompter.fusion": "static"},
      "- load balance": {"optim.balance": 0.0},
      "- word init (random)": {"prompter.init": "random"},
      "+ contrastive": {"optim.contrast": 0.02},
      "- image": {"prompter.see_image": False},
      "8 sites, then 2 new ones": {"fed.newcomers": 2, "fed.clients_per_round": 8},
    },
    seeds=SEEDS,
  )
