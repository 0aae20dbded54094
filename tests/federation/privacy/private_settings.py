"""Experiments under privacy over least squares, and what their clients may send."""

import jax
import numpy as np

from afspl_jax.config.experiment import Data, Experiment, Fed, Privacy, Uplink
from afspl_jax.federation.protocol import uplink
from tests.federation.least_squares import CLIENTS, init_params

CHANCE = 1e-7  # of a false alarm, a test
START = init_params()


def settings_of(fed=None, **privacy):
  fed = {"rounds": 4, "clients_per_round": CLIENTS} | (fed or {})
  return Experiment(
    data=Data(num_clients=CLIENTS),
    fed=Fed(**fed),
    uplink=Uplink("dense"),
    privacy=Privacy(**{"dp": "central", "noise": 2.0, "delta": 1e-3} | privacy),
  )


def update_of(params):
  return uplink.added(params, START)


def constant(value):
  return jax.tree.map(lambda leaf: np.full(leaf.shape, value), START)
