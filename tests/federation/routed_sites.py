"""Sites whose images differ, and a trainer of them that leaves the pool's keys and query alone."""

import numpy as np

from afspl_jax.federation.protocol.image_statistics import image_statistics
from afspl_jax.federation.protocol.uplink import everywhere, without
from afspl_jax.models.prompter.pool import ROUTING_LEAVES
from tests.federation.least_squares import LeastSquares, init_params

WIDTH, KEY_WIDTH = 6, 4  # of joint features, and of keys


def images(client, number=40):
  """Joint features of a site: around a mean of its own, and no unit vectors."""
  rng = np.random.default_rng([client, 7])
  around = np.random.default_rng(client).normal(size=WIDTH)
  spread = np.linspace(0.02, 0.3, WIDTH)
  return (3 * around + spread * rng.normal(size=(number, WIDTH))).astype(np.float32)


def statistics(client):
  return image_statistics(images(client, 40 + client))


def routed_params(pool=5):
  rng = np.random.default_rng(0)
  query = {
    "kernel": rng.normal(size=(2 * WIDTH, KEY_WIDTH)).astype(np.float32),
    "bias": np.zeros(KEY_WIDTH, np.float32),
  }
  keys = rng.normal(size=(pool, KEY_WIDTH)).astype(np.float32)
  return init_params() | {"pool": {"keys": keys, "query": query}}


class RoutedSites(LeastSquares):
  """Sends no row of the pool's keys and query."""

  def train(self, params, client, round):
    result = super().train(params, client, round)
    return result._replace(masks=without(everywhere(params), ROUTING_LEAVES))
