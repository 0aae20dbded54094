"""Every strategy against its paper's update rule, written down in its plainest form.

Here a model is one vector, x, and a round's replies are the rows of X, with sizes n and losses F.
"""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afspl_jax.federation import strategies
from afspl_jax.models.prompter.local import LOCAL
from tests.federation.strategies.strategy_replies import (
  SITES,
  assert_close,
  draw,
  like,
  replies_near,
  reply,
  vector,
)


class Plain:
  """McMahan et al. 2017, Algorithm 1."""

  def step(self, x, X, n, F):
    return sum(n_k / sum(n) * x_k for n_k, x_k in zip(n, X, strict=True))


class Momentum:
  """Hsu et al. 2019."""

  def __init__(self, server_lr, momentum):
    self.lr, self.beta, self.v = server_lr, momentum, 0

  def step(self, x, X, n, F):
    self.v = self.beta * self.v + (x - Plain().step(x, X, n, F))
    return x - self.lr * self.v


class Adaptive:
  """Reddi et al. 2021, Algorithm 2, its mean weighted by size."""

  def __init__(self, second, server_lr, beta1, tau):
    self.second, self.lr, self.beta1, self.tau = second, server_lr, beta1, tau
    self.m, self.v = 0, tau**2

  def step(self, x, X, n, F):
    delta = Plain().step(x, X - x, n, F)
    self.m = self.beta1 * self.m + (1 - self.beta1) * delta
    self.v = self.second(self.v, delta)
    return x + self.lr * self.m / (np.sqrt(self.v) + self.tau)


class Fair:
  """Li et al. 2020 (q-FFL), Algorithm 2; losses far from 0, where the authors add 1e-10."""

  def __init__(self, q, client_lr):
    self.q, self.L = q, 1 / client_lr

  def step(self, x, X, n, F):
    top, bottom = 0, 0
    for x_k, F_k in zip(X, F, strict=True):
      dw = self.L * (x - x_k)
      top = top + F_k**self.q * dw
      bottom += self.q * F_k ** (self.q - 1) * np.sum(dw**2) + self.L * F_k**self.q
    return x - top / bottom


class Median:
  """Yin et al. 2018, Definition 1."""

  def step(self, x, X, n, F):
    return np.median(X, axis=0)


class Trimmed:
  """Yin et al. 2018, Definition 2."""

  def __init__(self, cut):
    self.cut = cut

  def step(self, x, X, n, F):
    return np.array([np.mean(sorted(column)[self.cut : len(X) - self.cut]) for column in X.T])


class Krum:
  """Blanchard et al. 2017."""

  def __init__(self, faulty, multi):
    self.f, self.m = faulty, multi

  def step(self, x, X, n, F):
    def score(i):
      others = sorted(np.sum((X[i] - X[j]) ** 2) for j in range(len(X)) if j != i)
      return sum(others[: len(X) - self.f - 2])

    best = sorted(range(len(X)), key=score)[: self.m]
    return sum(X[i] for i in best) / self.m


class Alike:
  """Karimireddy et al. 2020, Algorithm 1: of the params; test_scaffold.py has the controls."""

  def __init__(self, server_lr):
    self.lr = server_lr

  def step(self, x, X, n, F):
    return x + self.lr * np.mean(X - x, axis=0)


def adam(v, d):
  return 0.9 * v + (1 - 0.9) * d**2


def yogi(v, d):
  return v - (1 - 0.9) * d**2 * np.sign(v - d**2)


CASES = {
  "fedavg": Plain(),
  "fedprox:mu=0.5": Plain(),
  "fedavgm": Momentum(1.0, 0.9),
  "fedavgm:momentum=0": Plain(),
  "fedavgm:server_lr=0.3,momentum=0.7": Momentum(0.3, 0.7),
  "fedadam:server_lr=0.03,beta1=0.8,beta2=0.9,tau=0.01": Adaptive(adam, 0.03, 0.8, 0.01),
  "fedyogi:server_lr=0.03,beta1=0.8,beta2=0.9,tau=0.05": Adaptive(yogi, 0.03, 0.8, 0.05),
  "fedadagrad": Adaptive(lambda v, d: v + d**2, 0.1, 0, 1e-3),
  "fedadagrad:beta1=0.5": Adaptive(lambda v, d: v + d**2, 0.1, 0.5, 1e-3),
  "qfedavg": Fair(1, 0.1),
  "qfedavg:q=2.5,client_lr=0.01": Fair(2.5, 0.01),
  "qfedavg:q=0.1,client_lr=2": Fair(0.1, 2),
  "median": Median(),
  "trimmed_mean": Trimmed(1),
  "trimmed_mean:trim=0.3": Trimmed(2),
  "trimmed_mean:trim=0": Trimmed(0),
  "scaffold": Alike(1),
  "scaffold:server_lr=0.6": Alike(0.6),
  "krum": Krum(1, 1),
  "krum:faulty=2,multi=4": Krum(2, 4),
}


def test_every_strategy_has_a_case():
  assert {spec.partition(":")[0] for spec in CASES} == set(strategies.known_strategies())


@pytest.mark.parametrize("number", [7, 8])
@pytest.mark.parametrize("spec", CASES)
def test_rounds_are_the_papers(spec, number):
  reference, strategy = copy.deepcopy(CASES[spec]), strategies.get_strategy(spec, SITES)
  rng = np.random.default_rng(0)
  params = draw(rng)
  state = strategy.init(params)
  for _ in range(4):
    replies = replies_near(params, rng, number)
    X = np.stack([vector(r.params) for r in replies])
    n, F = zip(*((r.num_examples, r.metrics["first_loss"]) for r in replies), strict=True)
    expected = like(params, reference.step(vector(params), X, n, F))
    params, state = strategy.aggregate(params, state, replies)
    assert_close(params, expected)


def test_yogi_is_tested_where_both_signs_occur():
  """From tau^2, the second moment goes up in some entries and down in others."""
  reference = Adaptive(yogi, 0.03, 0.8, 0.05)
  rng = np.random.default_rng(0)
  params = draw(rng)
  X = np.stack([vector(r.params) for r in replies_near(params, rng)])
  reference.step(vector(params), X, [1] * 7, None)
  assert (reference.v < 0.05**2).any() and (reference.v > 0.05**2).any()


def test_the_proximal_term_is_that_of_the_shared_leaves():
  """Li et al. 2020 (FedProx), eq. 2: mu / 2 ||w - w_t||^2, and so the gradient mu (w - w_t)."""
  rng = np.random.default_rng(0)
  start = draw(rng, half=False) | {LOCAL: {"prompt": np.ones((2, 3), np.float32)}}
  params = draw(rng, half=False) | {LOCAL: {"prompt": np.full((2, 3), 5, np.float32)}}
  penalty = strategies.shared_penalty(strategies.get_strategy("fedprox:mu=0.25"), (f"{LOCAL}/*",))
  value, grads = jax.jit(jax.value_and_grad(penalty))(params, start)
  shared = lambda tree: {k: v for k, v in tree.items() if k != LOCAL}  # noqa: E731
  away = vector(shared(params)) - vector(shared(start))
  np.testing.assert_allclose(value, 0.25 / 2 * np.sum(away**2), rtol=1e-6)
  np.testing.assert_allclose(vector(shared(jax.device_get(grads))), 0.25 * away, rtol=1e-5)
  assert (grads[LOCAL]["prompt"] == 0).all()
  assert penalty(start, start) == 0 and penalty({}, {}) == 0


def test_the_proximal_term_of_low_precision_params_is_summed_in_float32():
  params, start = {"a": jnp.ones(1000, jnp.bfloat16)}, {"a": jnp.zeros(1000, jnp.bfloat16)}
  assert strategies.get_strategy("fedprox:mu=1").client_penalty(params, start) == 500


def test_qfedavg_of_losses_of_any_size_is_finite():
  """The powers themselves have no room in a float; of losses that differ by much, one counts."""
  params = {"a": np.zeros(2, np.float32)}
  one, other = {"a": np.ones(2, np.float32)}, {"a": np.full(2, 9, np.float32)}
  replies = [reply("x", one, first_loss=1e300), reply("y", other, first_loss=0.0)]
  out, _ = strategies.get_strategy("qfedavg:q=5").aggregate(params, {}, replies)
  np.testing.assert_allclose(out["a"], 1)
  nothing = [r._replace(metrics={"first_loss": 0.0}) for r in replies]
  out, _ = strategies.get_strategy("qfedavg:q=0.5").aggregate(params, {}, nothing)
  assert np.isfinite(out["a"]).all()


@pytest.mark.parametrize("metrics, got", [({}, "None"), ({"first_loss": -0.5}, "-0.5")])
def test_qfedavg_asks_every_site_for_its_first_loss(metrics, got):
  params = {"a": np.zeros(2, np.float32)}
  replies = [reply("x", params, first_loss=1.0), reply("y", params, **metrics)]
  with pytest.raises(ValueError, match=f"qfedavg: .* first_loss, .*; got {got} from y$"):
    strategies.get_strategy("qfedavg").aggregate(params, {}, replies)


@pytest.mark.parametrize("spec, needed", [("krum", 5), ("krum:faulty=2", 7), ("krum:multi=6", 7)])
def test_krum_says_how_many_replies_it_needs(spec, needed):
  params = {"a": np.zeros(2, np.float32)}
  replies = [reply(f"s{i}", params) for i in range(needed)]
  strategies.get_strategy(spec).aggregate(params, {}, replies)
  with pytest.raises(ValueError, match=f"krum: expected at least {needed} updates .*; got"):
    strategies.get_strategy(spec).aggregate(params, {}, replies[1:])


def test_krum_takes_the_earlier_site_of_equal_scores():
  corners = [(0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5)]
  given = [reply(f"s{i}", {"a": np.float32(c)}) for i, c in enumerate(corners[:4])]
  given.append(reply("s4", {"a": np.float32((9, 9))}))
  out, _ = strategies.get_strategy("krum").aggregate(
    {"a": np.zeros(2, np.float32)}, {}, given[::-1]
  )
  assert out["a"].tolist() == [0, 0]


def test_a_share_is_cut_as_written_and_not_as_its_nearest_float():
  values = [0.0] * 29 + [1.0] * 42 + [9.0] * 29
  replies = [reply(f"s{i:02d}", {"a": np.float32([v])}) for i, v in enumerate(values)]
  assert int(0.29 * 100) == 28
  out, _ = strategies.get_strategy("trimmed_mean:trim=0.29").aggregate(
    {"a": np.zeros(1)}, {}, replies
  )
  assert out["a"].tolist() == [1.0]
