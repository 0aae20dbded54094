"""Sites whose images differ, and a trainer of them that leaves keys and query alone."""

import numpy as np

from afspl_jax.federation.protocol.image_statistics import image_statistics
from afspl_jax.federation.protocol.uplink import everywhere, without
from afspl_jax.models.prompter.site_prompts import ROUTING_LEAVES
from tests.federation.least_squares import LeastSquares, init_params

WIDTH = 6  # of joint features


def images(client, number=40):
  """Joint features of a site: around a mean of its own, and no unit vectors."""
  rng = np.random.default_rng([client, 7])
  around = np.random.default_rng(client).normal(size=WIDTH)
  spread = np.linspace(0.02, 0.3, WIDTH)
  return (3 * around + spread * rng.normal(size=(number, WIDTH))).astype(np.float32)


def statistics(client):
  return image_statistics(images(client, 40 + client))


def routed_params(sites=5):
  """Leaves with prompts of so many sites, before their keys are set."""
  query = {"kernel": np.zeros((WIDTH, sites), np.float32), "bias": np.zeros(sites, np.float32)}
  return init_params() | {"sites": {"keys": np.zeros((sites, sites), np.float32), "query": query}}


class RoutedSites(LeastSquares):
  """Sends no row of keys and query."""

  def train(self, params, client, round):
    result = super().train(params, client, round)
    return result._replace(masks=without(everywhere(params), ROUTING_LEAVES))
