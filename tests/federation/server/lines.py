"""Sites that fit a line each by SGD, and SCAFFOLD over them worked out by hand."""

import jax
import numpy as np

from afspl_jax.federation.client.client_store import ClientStore
from afspl_jax.federation.contracts import Update
from afspl_jax.federation.protocol.uplink import everywhere
from afspl_jax.federation.server.selection import Candidate, select
from tests.federation.least_squares import OneByOne

CLIENTS, EXAMPLES, STEPS, LR = 5, 30, 20, 0.1
START = {"w": np.zeros(3, np.float32), "b": np.float32(1).reshape(())}
ZEROS = jax.tree.map(np.zeros_like, START)


def data(client):
  """Inputs with a column of ones, and targets of a line of the client's own."""
  rng = np.random.default_rng(client)
  x = np.hstack([rng.normal(size=(EXAMPLES, 3)) * (1 + client / 4), np.ones((EXAMPLES, 1))])
  return x, x @ rng.normal(size=4) + rng.normal(size=EXAMPLES)


def gradient(client, w):
  """Of half the mean squared error."""
  x, y = data(client)
  return x.T @ (x @ w - y) / len(x)


def flat(tree):
  return np.append(tree["w"], tree["b"]).astype(np.float64)


def tree_of(values):
  return {"w": values[:3].astype(np.float32), "b": np.float32(values[3]).reshape(())}


def optimum():
  """Where the mean of the clients' losses is least: they have equally many examples."""
  x, y = (np.concatenate(parts) for parts in zip(*map(data, range(CLIENTS)), strict=True))
  return np.linalg.lstsq(x, y, rcond=None)[0]


class Lines(OneByOne):
  """Full-batch SGD; a client's next control is by the paper's option II."""

  def __init__(self, folder):
    self.store = ClientStore(folder)

  def site(self, client):
    return f"site_{client:02d}"

  def num_examples(self, client):
    return EXAMPLES

  def train(self, params, client, round, *, control=None):
    own = self.store.load(self.site(client), round, ZEROS) or ZEROS
    x, c, c_i = flat(params), flat(control or ZEROS), flat(own)
    y = x
    for _ in range(STEPS):
      y = y - LR * (gradient(client, y) - c_i + c)
    result = Update(
      self.site(client),
      tree_of(y),
      everywhere(START),
      EXAMPLES,
      {"loss": float(np.sum(gradient(client, y) ** 2))},
    )
    if control is None:
      return result
    new = tree_of(c_i - c + (x - y) / (STEPS * LR))
    self.store.save(self.site(client), round, new)
    return result._replace(control=jax.tree.map(np.subtract, new, own))


def candidates():
  return {f"site_{client:02d}": Candidate(EXAMPLES, None) for client in range(CLIENTS)}


def by_hand(rounds, per_round, server_lr=1.0):
  """Algorithm 1 of the paper; a control is what option II amounts to, the mean gradient."""
  x, c, own = flat(START), np.zeros(4), {k: np.zeros(4) for k in range(CLIENTS)}
  for round in range(1, rounds + 1):
    ends, changes = [], []
    for site in select("uniform", candidates(), per_round, 0, round):
      k, y, found = int(site[-2:]), x, []
      for _ in range(STEPS):
        found.append(gradient(k, y))
        y = y - LR * (found[-1] + c - own[k])
      ends.append(y)
      changes.append(np.mean(found, axis=0) - own[k])
      own[k] = np.mean(found, axis=0)
    x = x + server_lr * (np.mean(ends, axis=0) - x)
    c = c + per_round / CLIENTS * np.mean(changes, axis=0)
  return x, c, own
