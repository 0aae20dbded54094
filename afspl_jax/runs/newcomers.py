"""Newcomers: sites that join after the last round, to measure what the federation is worth to them.

A newcomer takes the global model and trains a copy of it on its own examples: all leaves, for
`fed.newcomer_steps` local steps, with the learning rates of the experiment and a schedule of its
own. Nothing is sent.
"""

import dataclasses
from collections.abc import Sequence

from afspl_jax.config import fields
from afspl_jax.config.experiment import Experiment
from afspl_jax.data.example_cap import capped
from afspl_jax.data.manifest import Clients
from afspl_jax.federation.client.local_trainer import LocalTrainer
from afspl_jax.types import Example, Params

JOINED = "joined"  # the folder of their models, next to that of the clients' states
_ROUND = 1  # a newcomer trains one round
_WARMUP = 0.25  # rounds


def joining(config: Experiment) -> Experiment:
  """The settings of a newcomer's training."""
  alone = {
    "fed.share": "none",
    "fed.local_leaves": "",
    "fed.ditto": 0.0,
    "fed.strategy": "fedavg",
    "prompter.local_drop": 0.0,
    "optim.local_only": 0,
    "privacy.example_clip": 0.0,  # nothing is sent
    "privacy.example_epsilon": 0.0,
  }
  one_round = {"fed.rounds": _ROUND, "optim.local_steps": config.fed.newcomer_steps}
  return fields.changed(config, alone | one_round | {"optim.warmup_rounds": _WARMUP})


def with_few_examples(train: Clients, examples: Sequence[Example], config: Experiment) -> Clients:
  """The training examples of each client, for newcomers at most `fed.newcomer_examples`."""
  few = dataclasses.replace(config.data, max_examples=config.fed.newcomer_examples)
  names = sorted(train)[len(train) - config.fed.newcomers :]
  return {**train, **capped({name: train[name] for name in names}, examples, few, config.seed)}


def train_newcomers(joiner: LocalTrainer, start: dict[int, Params]) -> dict[int, Params]:
  """Trains newcomers.

  Args:
    joiner: trains whole models, with the settings of `joining`.
    start: the model that each begins with.

  Returns:
    The model of each after its training.

  Raises:
    FloatingPointError: no step of one had a finite loss and gradient.
  """
  for client, params in start.items():
    joiner.set_state(client, _ROUND - 1, params)
  for result in joiner.train_cohort({}, list(start), _ROUND).values():
    if isinstance(result, Exception):
      raise result
  return {client: joiner.personal({}, client, _ROUND) for client in start}
