"""The default: ten sites of the shapes world, the shipped tiny backbones; minutes on a laptop CPU."""

from afspl_jax.config import Experiment


def get_config() -> Experiment:
  return Experiment()
