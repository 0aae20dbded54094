"""The default: ten sites of the shapes world, the shipped tiny backbones, a laptop's CPU."""

from afspl_jax.config import Experiment


def get_config() -> Experiment:
  return Experiment()
