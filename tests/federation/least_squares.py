"""A small real trainer: every site fits its own linear regression by gradient descent."""

import jax
import jax.numpy as jnp
import numpy as np

from afspl_jax.federation.contracts import Update, attempt
from afspl_jax.federation.protocol.uplink import everywhere

CLIENTS = 4  # of the federations in one process


def init_params(width=3):
  return {
    "prompt": {"global": np.linspace(-1, 1, 2 * width, dtype=np.float32).reshape(2, width)},
    "mapper": {"kernel": np.ones((width, 2), np.float32), "bias": np.zeros(2, np.float32)},
    "scale": np.float32(1.5).reshape(()),
  }


def predict(params, x):
  hidden = jnp.tanh(x @ params["mapper"]["kernel"] + params["mapper"]["bias"])
  return params["scale"] * hidden @ params["prompt"]["global"]


@jax.jit
def sgd(params, x, y):
  loss_fn = lambda p: jnp.mean((predict(p, x) - y) ** 2)  # noqa: E731

  def step(p, _):
    loss, grads = jax.value_and_grad(loss_fn)(p)
    return jax.tree.map(lambda a, g: a - 0.05 * g, p, grads), loss

  params, losses = jax.lax.scan(step, params, length=5)
  return params, losses[-1]


class OneByOne:
  """Trains the clients of a cohort one after the other, each by `train`."""

  def train_cohort(self, params, clients, round, **given):
    return {client: attempt(self.train, params, client, round, **given) for client in clients}


class LeastSquares(OneByOne):
  """Client k has 10 + k examples."""

  def __init__(self, width=3):
    self.width = width

  def site(self, client):
    return f"site_{client:02d}"

  def num_examples(self, client):
    return 10 + client

  def data(self, client, round):
    rng = np.random.default_rng([client, round])
    x = rng.normal(size=(self.num_examples(client), self.width)).astype(np.float32)
    return x, np.sin(x + client).astype(np.float32)

  def train(self, params, client, round):
    x, y = self.data(client, round)
    params, loss = sgd(params, x, y)
    return Update(self.site(client), params, everywhere(params), len(x), {"loss": float(loss)})


def evaluate(round, params):
  """Scores every second round."""
  if round % 2:
    return None
  x, y = LeastSquares().data(1, 0)
  return {"loss": float(((predict(params, x) - y) ** 2).mean())}


def reference(rounds, clients_of=lambda round: range(CLIENTS), params=None):
  """FedAvg by hand, in NumPy."""
  params, trainer = params or init_params(), LeastSquares()
  for round in range(1, rounds + 1):
    results = [jax.device_get(trainer.train(params, c, round)) for c in clients_of(round)]
    total = sum(r.num_examples for r in results)
    params = jax.tree.map(
      lambda *leaves, results=results, total=total: np.asarray(
        sum(r.num_examples * x.astype(np.float64) for r, x in zip(results, leaves, strict=True))
        / total
      ).astype(np.float32),
      *(r.params for r in results),
    )
  return params


def assert_same_bits(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.shape == y.shape and x.tobytes() == y.tobytes()
