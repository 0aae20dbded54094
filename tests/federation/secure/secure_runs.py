"""Runs of least squares under secure aggregation, in one process: to look into and to spoil."""

import dataclasses

import jax
import numpy as np
from flwr.clientapp import ClientApp

from afspl_jax.config.experiment import Uplink
from afspl_jax.federation.client.client_app import SiteApp
from afspl_jax.federation.contracts import WITHIN
from afspl_jax.federation.secure.party import Rules
from afspl_jax.federation.secure.site import SecureSite
from afspl_jax.federation.secure.terms import Terms
from afspl_jax.federation.server.aggregation import SecureAggregation
from afspl_jax.federation.server.rounds import run_rounds
from afspl_jax.federation.transport.local_grid import LocalGrid
from tests.federation.least_squares import CLIENTS, LeastSquares

TERMS = Terms(Rules(0.6), bits=24, clip=4.0, max_weight=100, counts=(WITHIN,))
# In a graph that is not complete, the set of survivors is signed also if it is that of all sites.
SIGNED = dataclasses.replace(TERMS, rules=Rules(0.6, neighbours=2))
STEP = TERMS.quantiser(15, CLIENTS, None).step
DENSE = Uplink(select="dense")
KINDS = {
  "keys": "query.secure_keys",
  "shares": "query.secure_shares",
  "train": "train",
  "confirm": "query.secure_confirm",
  "unmask": "query.secure_unmask",
}


class Recording(LocalGrid):
  """Keeps all that was sent."""

  def __init__(self, *args):
    super().__init__(*args)
    self.asked, self.replies = [], []

  def push_messages(self, messages):
    self.asked += (messages := list(messages))
    return super().push_messages(messages)

  def pull_messages(self, message_ids):
    replies = super().pull_messages(message_ids)
    self.replies += replies
    return replies


class Spoilt(ClientApp):
  """Honest but for some clients at one kind of message."""

  def __init__(self, app, kind, spoil, clients):
    super().__init__()
    self.app, self.kind, self.spoil, self.clients = app, kind, spoil, clients

  def __call__(self, message, context):
    reply = self.app(message, context)
    mine = context.node_config["partition-id"] in self.clients
    if mine and message.metadata.message_type == self.kind:
      return self.spoil(reply) or reply
    return reply


def secured(run, terms=TERMS):
  return dataclasses.replace(run, aggregation=SecureAggregation(terms, DENSE, run.seed))


def run_with(run, app=None, terms=TERMS):
  app = app or SiteApp(LeastSquares(), run.params, masking=SecureSite(terms))
  grid = Recording(app, CLIENTS)
  return grid, run_rounds(grid, secured(run, terms), CLIENTS)


def terms_with(stage):
  """Terms by which a round has this stage."""
  return SIGNED if stage == "confirm" else TERMS


def spoilt(run, kind, spoil, clients=(2,), terms=TERMS):
  app = SiteApp(LeastSquares(), run.params, masking=SecureSite(terms))
  return Spoilt(app, kind, spoil, clients)


def raising(reply):
  raise OSError("disk full")


def distance(a, b):
  largest = jax.tree.map(lambda x, y: np.abs(x - y).max(), a, b)
  return max(jax.tree.leaves(largest))
