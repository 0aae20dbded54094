"""A small real trainer: every site fits its own linear regression by gradient descent."""

import jax
import jax.numpy as jnp
import numpy as np

from afspl_jax.federation.client import LocalResult


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


class LeastSquares:
  """Client k has 10 + k examples."""

  def __init__(self, width=3):
    self.width = width

  def site(self, client):
    return f"site_{client:02d}"

  def data(self, client, round):
    rng = np.random.default_rng([client, round])
    x = rng.normal(size=(10 + client, self.width)).astype(np.float32)
    return x, np.sin(x + client).astype(np.float32)

  def train(self, params, client, round):
    x, y = self.data(client, round)
    params, loss = sgd(params, x, y)
    return LocalResult(params, len(x), {"loss": float(loss)})
