import importlib
import itertools

import jax
import ml_dtypes
import numpy as np
import pytest
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg

from afspl_jax.errors import UserError
from afspl_jax.federation import strategies
from afspl_jax.federation.contracts import Update
from afspl_jax.federation.protocol import uplink, wire
from afspl_jax.federation.transport.local_grid import LocalGrid
from tests.federation.least_squares import LeastSquares, init_params


def reply(site, params, num_examples, masks=None):
  return Update(
    site, params, uplink.everywhere(params) if masks is None else masks, num_examples, {}
  )


def replies_of(num_clients):
  trainer = LeastSquares()
  out = []
  for client in range(num_clients):
    result = trainer.train(init_params(), client, 1)
    out.append(reply(trainer.site(client), jax.device_get(result.params), result.num_examples))
  return out


def average(replies, params=None):
  strategy = strategies.get_strategy("fedavg")
  params = init_params() if params is None else params
  return strategy.aggregate(params, strategy.init(params), replies)[0]


def assert_close(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6), a, b)


def test_fedavg_is_the_weighted_mean():
  replies = replies_of(5)
  weights = np.array([10, 11, 12, 13, 14]) / 60
  stacked = jax.tree.map(lambda *x: np.stack(x).astype(np.float64), *(r.params for r in replies))
  reference = jax.tree.map(lambda x: np.tensordot(weights, x, 1), stacked)
  assert_close(average(replies), reference)


def test_fedavg_equals_flowers_on_the_same_replies():
  app, given = ClientApp(), replies_of(4)

  @app.train()
  def train(message, context):
    result = given[context.node_config["partition-id"]]
    records = {
      "arrays": wire.pack(result.params),
      "metrics": MetricRecord({"num-examples": result.num_examples}),
    }
    return Message(RecordDict(records), reply_to=message)

  grid = LocalGrid(app, 4)
  messages = [Message(RecordDict(), node, "train") for node in grid.get_node_ids()]
  arrays, _ = FlowerFedAvg().aggregate_train(1, grid.send_and_receive(messages))
  flowers = wire.unpack(arrays, init_params())
  assert_close(average(given), flowers)


def bits(params):
  return b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params))


def sparse_replies(seed, num_clients=5):
  """Replies with the global params where a random mask is False; row 1 is sent by nobody."""
  rng = np.random.default_rng(seed)
  shapes = {"pool": (2, 4, 3), "kernel": (5, 2), "bias": (3,), "scale": ()}
  draw = lambda: {k: np.asarray(rng.normal(size=s), np.float32) for k, s in shapes.items()}  # noqa: E731
  params, replies = draw(), []
  params["kernel"][1] = -0.0, 1e-40
  for client in range(num_clients):
    masks = jax.tree.map(lambda m: np.asarray(rng.random(m.shape) < 0.5), uplink.everywhere(params))
    masks["kernel"][1] = False
    sent = jax.tree.map(np.where, masks, draw(), params)
    replies.append(reply(f"s{client}", sent, int(rng.integers(1, 1000)), masks))
  return params, replies


@pytest.mark.parametrize("seed", range(5))
def test_fedavg_averages_each_row_over_the_sites_that_sent_it(seed):
  params, replies = sparse_replies(seed)
  out, nobody = average(replies, params), 0
  rows = [(name, i) for name, leaf in params.items() for i in np.ndindex(leaf.shape[:-1])]
  for name, index in rows:
    row = out[name][index]
    senders = [r for r in replies if r.masks[name][index].all()]
    nobody += not senders
    if senders:
      alone = [reply(r.site, {"x": r.params[name][index]}, r.num_examples) for r in senders]
      assert bits(row) == bits(average(alone, {"x": params[name][index]}))
    else:
      assert bits(row) == bits(params[name][index])
  assert nobody > 0


@pytest.mark.parametrize("counts", [(10, 11, 12), (1, 2**29, 2**29 - 3)])
def test_fedavg_of_all_rows_is_the_unmasked_mean_to_the_last_bit(counts):
  replies = [r._replace(num_examples=n) for r, n in zip(replies_of(3), counts, strict=True)]

  def unmasked(*leaves):
    terms = [n * np.asarray(x, np.float64) for n, x in zip(counts, leaves, strict=True)]
    return (sum(terms) / sum(counts)).astype(np.float32)

  reference = jax.tree.map(unmasked, *(r.params for r in replies))
  assert bits(average(replies)) == bits(reference)


def test_fedavg_over_all_moves_a_row_by_the_share_of_those_who_sent_it():
  """What "cohort" weighing is: the same replies, their masks all True."""
  params = {"a": np.zeros((2, 3), np.float32)}
  row = {"a": np.array([[True], [False]])}
  sent = jax.tree.map(np.where, row, {"a": np.ones((2, 3), np.float32)}, params)
  some = [reply("x", sent, 1, row), reply("y", params, 3, {"a": np.zeros((2, 1), np.bool_)})]
  everyone = [r._replace(masks=uplink.everywhere(params)) for r in some]
  assert average(some, params)["a"].tolist() == [[1, 1, 1], [0, 0, 0]]
  assert average(everyone, params)["a"].tolist() == [[0.25, 0.25, 0.25], [0, 0, 0]]


def test_fedavg_of_sparse_replies_does_not_depend_on_their_order():
  params, replies = sparse_replies(0)
  assert len({bits(average(order, params)) for order in itertools.permutations(replies)}) == 1


def test_fedavg_does_not_depend_on_the_order_of_replies_to_the_last_bit():
  # Large terms that cancel: a sum in the order of arrival does depend on it.
  large = np.random.default_rng(0).normal(size=50).astype(np.float32) * np.float32(1e18)
  leaves = [large, -large, np.ones(50, np.float32), np.full(50, 0.3, np.float32)]
  replies = [reply(f"s{i}", {"a": leaf}, 1) for i, leaf in enumerate(leaves)]
  orders = list(itertools.permutations(replies))
  assert len({bits(sum(r.params["a"].astype(np.float64) for r in order)) for order in orders}) > 1
  params = {"a": np.zeros(50, np.float32)}
  assert len({bits(average(list(order), params)) for order in orders}) == 1


@pytest.mark.parametrize("counts", [(5,), (1, 3, 7, 2**29), (10, 999, 12345677)])
def test_fedavg_of_equal_params_is_those_params_to_the_last_bit(counts):
  params = {"a": np.random.default_rng(0).normal(size=1000).astype(np.float32) * 1e-30}
  replies = [reply(f"s{i}", params, n) for i, n in enumerate(counts)]
  assert bits(average(replies, params)) == bits(params)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_fedavg_keeps_dtypes_and_scalars(dtype):
  params = {"a": np.zeros((), dtype), "b": np.zeros((2, 2), dtype)}
  other = jax.tree.map(lambda x: np.asarray(x + 1, dtype), params)
  out = average([reply("x", params, 1), reply("y", other, 3)], params)
  assert out["a"].shape == () and out["a"].dtype == out["b"].dtype == np.dtype(dtype)
  np.testing.assert_array_equal(out["b"].astype(np.float32), 0.75)


def test_fedavg_leaves_its_inputs_alone():
  params, replies = init_params(), replies_of(2)
  average(replies, params)
  jax.tree.map(np.testing.assert_array_equal, params, init_params())
  jax.tree.map(np.testing.assert_array_equal, replies[0].params, replies_of(1)[0].params)


def test_fedavg_adds_nothing_to_the_local_loss():
  strategy = strategies.get_strategy("fedavg")
  value, grads = jax.jit(jax.value_and_grad(strategy.client_penalty))(init_params(), init_params())
  assert value == 0 and all((g == 0).all() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("name", strategies.known_strategies())
def test_a_name_alone_is_the_strategy_with_its_defaults(name):
  create = importlib.import_module(f"afspl_jax.federation.strategies.{name}").create
  sites = {"num_sites": 5} if name == "scaffold" else {}
  assert strategies.get_strategy(name, 5) == create(**sites)


def test_options_follow_the_name():
  adam = strategies.get_strategy("fedadam:server_lr=0.03,tau=1e-4")
  assert (adam.server_lr, adam.tau, adam.beta1) == (0.03, 1e-4, 0.9)
  krum = strategies.get_strategy("krum:multi=3")
  assert krum.multi == 3 and type(krum.multi) is int
  mu = strategies.get_strategy("fedprox:mu=1").mu
  assert mu == 1 and type(mu) is float


REFUSED = {
  "os": "expected one of fedadagrad, .*fedavg, .*trimmed_mean; got 'os'",
  "": "expected one of .*; got ''",
  "_mean": "expected one of .*; got '_mean'",
  "fedavg:mu=1": "fedavg: expected no options; got 'mu=1'",
  "fedprox:nu=1": r"fedprox: expected its options \(mu=0.01\), each once, as .*; got 'nu=1'",
  "fedadam:lr=1": r"fedadam: expected its options \(.*server_lr=0.1, .*tau=0.001.*\), .*got 'lr=1'",
  "fedprox:": "fedprox: expected its options .*; got ''",
  "fedprox:mu": "fedprox: expected its options .*; got 'mu'",
  "fedprox:mu=1,mu=2": "fedprox: expected its options .*; got 'mu=2'",
  "fedprox:mu=": "fedprox: mu: expected a number; got ''",
  "fedprox:mu=much": "fedprox: mu: expected a number; got 'much'",
  "krum:multi=2.5": "krum: multi: expected a whole number; got '2.5'",
  "fedprox:mu=-1": "fedprox: mu: expected a finite number from 0 on; got -1.0",
  "fedprox:mu=nan": "fedprox: mu: expected a finite number from 0 on; got nan",
  "fedavgm:server_lr=0": "fedavgm: server_lr: expected a finite number above 0; got 0.0",
  "fedavgm:momentum=1": "fedavgm: momentum: expected a number from 0 to below 1; got 1.0",
  "fedadam:server_lr=inf": "fedadam: server_lr: expected a finite number above 0; got inf",
  "fedyogi:beta1=-0.1": "fedyogi: beta1: expected a number from 0 to below 1; got -0.1",
  "fedadam:beta2=1": "fedadam: beta2: expected a number from 0 to below 1; got 1.0",
  "fedyogi:beta2=1": "fedyogi: beta2: expected a number from 0 to below 1; got 1.0",
  "fedadagrad:tau=0": "fedadagrad: tau: expected a finite number above 0; got 0.0",
  "qfedavg:q=-1": "qfedavg: q: expected a finite number from 0 on; got -1.0",
  "qfedavg:client_lr=0": "qfedavg: client_lr: expected a finite number above 0; got 0.0",
  "trimmed_mean:trim=0.7": "trimmed_mean: trim: expected a share from 0 to below 0.5; got 0.7",
  "scaffold": "scaffold: num_sites: expected the number of sites in the federation; got 0",
  "scaffold:num_sites=3": r"scaffold: expected its options \(server_lr=1.0\), .*got 'num_sites=3'",
  "scaffold:server_lr=0": "scaffold: server_lr: expected a finite number above 0; got 0.0",
  "krum:faulty=-1": "krum: faulty: expected a whole number from 0 on; got -1",
  "krum:multi=0": "krum: multi: expected a whole number from 1 on; got 0",
}


@pytest.mark.parametrize("spec", REFUSED)
def test_a_mistake_is_rejected_with_one_line(spec):
  with pytest.raises(UserError, match=f"^fed.strategy: {REFUSED[spec]}$") as refusal:
    strategies.get_strategy(spec)
  assert "\n" not in str(refusal.value)


def test_a_new_strategy_is_one_new_file(tmp_path, monkeypatch):
  (tmp_path / "first_site.py").write_text(
    "from __future__ import annotations\n"
    "from dataclasses import dataclass\n"
    "@dataclass(frozen=True)\n"
    "class FirstSite:\n"
    "  step: float = 1.0\n"
    "  def client_penalty(self, params, global_params): return 0.0\n"
    "  def init(self, params): return {}\n"
    "  def aggregate(self, params, state, replies): return replies[0].params, state\n"
    "create = FirstSite\n"
  )
  (tmp_path / "_shared.py").write_text("")
  monkeypatch.setattr(strategies, "__path__", [*strategies.__path__, str(tmp_path)])
  assert strategies.get_strategy("first_site:step=0.5").step == 0.5
  assert (
    "first_site" in strategies.known_strategies() and "_shared" not in strategies.known_strategies()
  )
