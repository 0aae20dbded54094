"""What an experiment is: fields with unit, meaning and legal range; files; flags; studies."""

from afspl_jax.config.experiment import (
  Attack,
  Backbone,
  Data,
  Eval,
  Experiment,
  Fed,
  Optim,
  Privacy,
  Prompter,
  Secure,
  Uplink,
)
from afspl_jax.config.study import Study

__all__ = [
  "Attack",
  "Backbone",
  "Data",
  "Eval",
  "Experiment",
  "Fed",
  "Optim",
  "Privacy",
  "Prompter",
  "Secure",
  "Study",
  "Uplink",
]
