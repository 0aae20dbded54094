"""The cost of client-level differential privacy: 100 clients, two budgets, and a run without.

`afspl ablate configs/privacy.py --workdir=runs/privacy`

With 100 clients, the noise that hides one client is large compared with the mean update, and grows
with the number of parameters. So the prompter is small, rounds are few, and the clipping bound
keeps the noise on a parameter below the size of its update. The bounds are the best of 1 and 3 for
ε = 8, and of 1, 3 and 6 for ε = 50, with seed 0.
"""

from afspl_jax.config import Data, Eval, Experiment, Fed, Optim, Privacy, Prompter, Study, Uplink

CLIENTS, ROUNDS = 100, 10


def get_config() -> Experiment:
  return Experiment(
    data=Data(partition="iid", num_clients=CLIENTS),
    prompter=Prompter(
      local=False, routing="none", pool=1, k_max=1, tokens=4, key_dim=4, fusion_hidden=4
    ),
    optim=Optim(
      local_steps=4,
      prompt_lr=0.03,
      balance=0.0,
      schedule="constant",
      warmup_rounds=1.0,
      weight_decay=0.0,
    ),
    fed=Fed(rounds=ROUNDS, clients_per_round=CLIENTS, cohort=25),
    uplink=Uplink(select="dense"),
    privacy=Privacy(delta=1e-3),
    eval=Eval(every=ROUNDS, val_examples=50, test_examples=500, common_examples=60),
  )


def get_study() -> Study:
  loose = {"privacy.dp": "central", "privacy.epsilon": 50.0, "privacy.clip": 6.0}
  tight = {"privacy.dp": "central", "privacy.epsilon": 8.0, "privacy.clip": 3.0}
  # So large that no update is clipped: the remaining difference is rounding.
  secure = {"secure.aggregation": True}
  return Study(
    base=get_config(),
    settings={"100 clients": {}},
    variants={
      "no privacy": {},
      "ε = 50": loose,
      "ε = 8": tight,
      "secure aggregation": {**secure, "privacy.clip": 100.0},
      "ε = 8, secure aggregation": {**tight, **secure},
    },
    seeds=(0, 1, 2),
    reference="no privacy",
    full="no privacy",
  )
