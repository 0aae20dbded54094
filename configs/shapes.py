"""The default: ten small sites of the shapes world, with the shipped tiny backbones, on a laptop.

It shows what sites gain by joining: beside the federation, each site trains alone, and one model
trains on the data of all sites.
"""

from afspl_jax.config import Data, Eval, Experiment, Fed, Optim


def get_config() -> Experiment:
  return Experiment(
    data=Data(max_examples=64),
    optim=Optim(local_steps=4, warmup_rounds=4),
    fed=Fed(rounds=48, compare="both"),
    eval=Eval(every=12, val_examples=96, common_examples=60),
  )
