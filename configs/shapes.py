"""The default: ten small sites of the shapes world, with the shipped tiny backbones, on a laptop.

It shows what sites gain by joining: beside the federation, each site trains alone, and one model
trains on the data of all sites.
"""

from afspl_jax.config import Data, Eval, Experiment, Fed


def get_config() -> Experiment:
  return Experiment(
    data=Data(max_examples=64),
    fed=Fed(rounds=36, compare="both"),
    eval=Eval(every=12, val_examples=96, common_examples=60),
  )
