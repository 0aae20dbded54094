"""Our strategies against Flower's own: equal where those are right, and where they are not, how."""

import gc

import jax
import ml_dtypes
import numpy as np
import pytest
from flwr.serverapp import strategy as flower
from flwr.supercore.task_identity import TaskIdentity

from afspl_jax.federation import strategies
from tests.federation.strategies.flower_replies import arrays, messages, paths, record
from tests.federation.strategies.strategy_replies import (
  assert_close,
  bits,
  draw,
  replies_near,
  reply,
  sparse_replies,
  vector,
)

TAU = 1e-3


@pytest.fixture(autouse=True)
def flower_in_a_test(monkeypatch):
  # A Message takes its run and sender from the process.
  TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
  # Flower's QFedAvg collects garbage after every array, which takes 30 ms each time.
  monkeypatch.setattr(gc, "collect", lambda: 0)


def aggregate(theirs, params, replies, round=1):
  """The same as params, in whatever dtype they come back."""
  out = arrays(theirs, params, replies, round)
  return jax.tree.unflatten(
    jax.tree.structure(params), [out[path].numpy() for path in paths(params)]
  )


def start_at(theirs, params):
  """Gives Flower's adaptive strategies the papers' first v, tau^2; its own is 0."""
  theirs.v_t = {path: np.full_like(leaf, TAU**2) for path, leaf in paths(params).items()}


PAIRS = {
  "fedavg": flower.FedAvg,
  "fedprox:mu=0.3": lambda: flower.FedProx(proximal_mu=0.3),
  "fedavgm:server_lr=0.7,momentum=0.8": lambda: flower.FedAvgM(
    server_learning_rate=0.7, server_momentum=0.8
  ),
  "fedadam:server_lr=0.03": lambda: flower.FedAdam(eta=0.03, tau=TAU),
  "fedyogi:server_lr=0.03": lambda: flower.FedYogi(eta=0.03, tau=TAU),
  "fedadagrad:server_lr=0.03": lambda: flower.FedAdagrad(eta=0.03, tau=TAU),
  "qfedavg:q=2,client_lr=0.3": lambda: flower.QFedAvg(client_learning_rate=0.3, q=2),
  "median": flower.FedMedian,
  "trimmed_mean:trim=0.3": lambda: flower.FedTrimmedAvg(beta=0.3),
  "krum:faulty=2": lambda: flower.Krum(num_malicious_nodes=2),
  "krum:faulty=2,multi=3": lambda: flower.MultiKrum(num_malicious_nodes=2, num_nodes_to_select=3),
}


def test_every_strategy_of_flowers_that_we_have_is_compared():
  # Flower has no SCAFFOLD.
  assert {spec.partition(":")[0] for spec in PAIRS} == set(strategies.known_strategies()) - {
    "scaffold"
  }


@pytest.mark.parametrize("number", [7, 8])
@pytest.mark.parametrize("spec", PAIRS)
def test_dense_rounds_are_flowers_where_flower_is_right(spec, number):
  ours, theirs, rng = strategies.get_strategy(spec), PAIRS[spec](), np.random.default_rng(0)
  params = draw(rng, half=False)
  state = ours.init(params)
  if isinstance(theirs, flower.fedopt.FedOpt):
    start_at(theirs, params)
  for round in range(1, 5):
    replies = replies_near(params, rng, number)
    if isinstance(theirs, flower.MultiKrum):  # it weighs the picked ones by size
      replies = [r._replace(num_examples=1) for r in replies]
    if isinstance(theirs, flower.FedAdam):  # it corrects the bias, which the paper does not
      factor = np.sqrt(1 - 0.99 ** (round + 1)) / (1 - 0.9 ** (round + 1))
      theirs.eta = 0.03 / factor
    expected = aggregate(theirs, params, replies, round)
    params, state = ours.aggregate(params, state, replies)
    expected = jax.tree.map(lambda leaf: leaf.astype(np.float32), expected)
    assert_close(params, expected, 1e-5)


# Where Flower's own differ.


def gap(ours, theirs):
  return np.abs(vector(ours) - vector(theirs)).max()


def test_flowers_fedadam_returns_float64():
  params, ours = {"a": np.zeros(2, np.float32)}, strategies.get_strategy("fedadam")
  replies = replies_near(params, np.random.default_rng(0))
  out, _ = ours.aggregate(params, ours.init(params), replies)
  assert out["a"].dtype == np.float32
  assert aggregate(flower.FedAdam(), params, replies)["a"].dtype == np.float64


def test_flowers_fedadam_corrects_the_bias_by_one_round_too_many():
  """The paper's does not correct it; Kingma and Ba's would by powers of 1 in round 1, not of 2."""
  params = {"a": np.zeros(1, np.float32)}
  replies = [reply("s", {"a": np.ones(1, np.float32)})]
  theirs = flower.FedAdam(eta=1.0, tau=1e-9)
  factor = np.sqrt(1 - 0.99**2) / (1 - 0.9**2)
  step = aggregate(theirs, params, replies)["a"]
  np.testing.assert_allclose(step, factor * 0.1 / np.sqrt(0.01), rtol=1e-6)
  ours, _ = strategies.get_strategy("fedadam:server_lr=1,tau=1e-9").aggregate(
    params, strategies.get_strategy("fedadam:tau=1e-9").init(params), replies
  )
  np.testing.assert_allclose(ours["a"], 0.1 / np.sqrt(0.01), rtol=1e-6)


@pytest.mark.parametrize("spec", ["fedyogi:server_lr=0.1", "fedadagrad"])
def test_flowers_adaptive_strategies_begin_with_no_second_moment(spec):
  """The paper's v begins at tau^2 or above; from 0 the first step of a small update is larger."""
  name = spec.partition(":")[0]
  theirs = {"fedyogi": flower.FedYogi, "fedadagrad": flower.FedAdagrad}[name](eta=0.1, tau=TAU)
  params, step = {"a": np.zeros(1, np.float32)}, np.float32([TAU])
  ours = strategies.get_strategy(spec)
  out, _ = ours.aggregate(params, ours.init(params), [reply("s", {"a": step})])
  assert aggregate(theirs, params, [reply("s", {"a": step})])["a"] > 1.1 * out["a"]


STATEFUL = {
  "fedavgm": lambda: flower.FedAvgM(server_momentum=0.9),
  "fedadam": flower.FedAdam,
  "fedyogi": flower.FedYogi,
  "fedadagrad:beta1=0.5": flower.FedAdagrad,
}


@pytest.mark.parametrize("spec", STATEFUL)
def test_flowers_server_state_is_lost_with_its_process(spec):
  rng, params = np.random.default_rng(0), {"a": np.zeros((3, 2), np.float32)}
  first, second = replies_near(params, rng), replies_near(params, rng)
  straight, restarted = STATEFUL[spec](), STATEFUL[spec]()
  aggregate(straight, params, first)
  assert gap(aggregate(straight, params, second, 2), aggregate(restarted, params, second, 2)) > 1e-3


@pytest.mark.parametrize("spec", ["fedavgm", "fedadam", "fedyogi"])
def test_flowers_momentum_moves_rows_that_nobody_sent(spec):
  rng, ours, theirs = np.random.default_rng(0), strategies.get_strategy(spec), STATEFUL[spec]()
  params = draw(rng, half=False)
  first, second = replies_near(params, rng), sparse_replies(params, rng)
  aggregate(theirs, params, first)
  flowers = aggregate(theirs, params, second, 2)
  _, state = ours.aggregate(params, ours.init(params), first)
  kept, _ = ours.aggregate(params, state, second)
  assert flowers["scale"] != params["scale"] and kept["scale"] == params["scale"]


@pytest.mark.parametrize("spec", ["fedavg", "median", "trimmed_mean"])
def test_flowers_count_a_row_that_a_site_did_not_send_as_its_vote_for_the_old_one(spec):
  theirs = {"fedavg": flower.FedAvg, "median": flower.FedMedian}.get(spec, flower.FedTrimmedAvg)()
  params = {"a": np.zeros((2, 1), np.float32)}
  sent, nothing = {"a": np.array([[True], [False]])}, {"a": np.zeros((2, 1), np.bool_)}
  replies = [reply(f"s{i}", {"a": np.float32([[1], [0]])}, 1, sent) for i in range(2)]
  replies += [reply(f"t{i}", params, 1, nothing) for i in range(3)]
  ours, _ = strategies.get_strategy(spec).aggregate(params, {}, replies)
  assert ours["a"].tolist() == [[1], [0]]
  assert aggregate(theirs, params, replies)["a"][0] < 0.5


@pytest.mark.parametrize("spec", ["fedavg", "fedavgm", "qfedavg"])
def test_flowers_result_depends_on_the_order_of_replies(spec):
  make = {
    "fedavg": flower.FedAvg,
    "fedavgm": lambda: flower.FedAvgM(server_momentum=0.9),
    "qfedavg": lambda: flower.QFedAvg(client_learning_rate=0.1),
  }[spec]
  large = np.random.default_rng(0).normal(size=50).astype(np.float32) * np.float32(1e8)
  params = {"a": np.zeros(50, np.float32)}
  leaves = [large, -large, np.ones(50, np.float32), np.full(50, 0.3, np.float32)]
  replies = [reply(f"s{i}", {"a": leaf}) for i, leaf in enumerate(leaves)]
  orders = [replies, replies[::-1], [replies[i] for i in (2, 0, 3, 1)]]
  assert len({bits(aggregate(make(), params, order)) for order in orders}) > 1


def test_flowers_krum_takes_the_first_to_arrive_of_equal_scores():
  params = {"a": np.zeros(2, np.float32)}
  corners = [(0, 0), (0, 1), (1, 0), (1, 1), (9, 9)]
  replies = [reply(f"s{i}", {"a": np.float32(c)}) for i, c in enumerate(corners)]
  results = {
    bits(aggregate(flower.Krum(num_malicious_nodes=1), params, r)) for r in (replies, replies[::-1])
  }
  assert len(results) == 2


def test_flowers_krum_loses_small_differences_between_large_params():
  """||x||^2 + ||y||^2 - 2 x y in float32: with params of 1000, differences of 0.3 are noise."""
  rng, far = np.random.default_rng(1), np.full(50, 1000, np.float32)
  params = {"a": far}
  leaves = [far + np.float32(0.01) * rng.normal(size=50).astype(np.float32) for _ in range(6)]
  replies = [reply("s0", {"a": far + np.float32(0.3)})]  # the one that Krum must not take
  replies += [reply(f"s{i + 1}", {"a": leaf}) for i, leaf in enumerate(leaves)]
  ours, _ = strategies.get_strategy("krum").aggregate(params, {}, replies)
  assert gap(ours, params) < 0.05
  records = [record(r.params) for r in replies]
  distances = flower.multikrum.compute_distances(records)
  x = np.stack([vector(r.params) for r in replies])
  true = np.square(x[:, None] - x[None]).sum(-1)
  assert (distances < 0).any() and np.abs(distances - true).max() > true.max()


def test_flowers_krum_answers_with_any_number_of_replies():
  """The paper needs 2 f + 3 of them."""
  params = {"a": np.zeros(1, np.float32)}
  replies = [reply("s0", {"a": np.float32([5])}), reply("s1", {"a": np.float32([7])})]
  assert aggregate(flower.Krum(num_malicious_nodes=3), params, replies)["a"] in (5, 7)
  with pytest.raises(ValueError, match="krum: expected at least 9 updates"):
    strategies.get_strategy("krum:faulty=3").aggregate(params, {}, replies)


def test_flowers_multi_krum_weighs_the_picked_by_what_they_say_of_their_size():
  """The paper's mean is plain: a size is for a faulty site to choose."""
  params = {"a": np.zeros(1, np.float32)}
  replies = [reply(f"s{i}", {"a": np.float32([i])}, 10**6 if i == 0 else 1) for i in range(5)]
  theirs = flower.MultiKrum(num_malicious_nodes=1, num_nodes_to_select=4)
  ours, _ = strategies.get_strategy("krum:multi=4").aggregate(params, {}, replies)
  flowers = aggregate(theirs, params, replies)["a"]
  picked = [i for i in range(5) if i != 4]
  np.testing.assert_allclose(ours["a"], np.mean(picked))
  assert flowers < 0.01


@pytest.mark.parametrize("spec", PAIRS)
def test_flowers_cannot_compute_with_bfloat16(spec):
  params, rng = {"a": np.zeros((2, 2), ml_dtypes.bfloat16)}, np.random.default_rng(0)
  replies, ours = replies_near(params, rng), strategies.get_strategy(spec)
  out, _ = ours.aggregate(params, ours.init(params), replies)
  assert out["a"].dtype == ml_dtypes.bfloat16
  with pytest.raises(TypeError, match="ufunc"):
    aggregate(PAIRS[spec](), params, replies)


@pytest.mark.parametrize("spec", ["median", "trimmed_mean"])
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_flowers_robust_means_overflow_in_float32(spec):
  theirs = flower.FedMedian() if spec == "median" else flower.FedTrimmedAvg()
  params = {"a": np.zeros(1, np.float32)}
  replies = [reply(f"s{i}", {"a": np.float32([3e38])}) for i in range(4)]
  ours, _ = strategies.get_strategy(spec).aggregate(params, {}, replies)
  assert np.isinf(aggregate(theirs, params, replies)["a"]) and ours["a"] == np.float32(3e38)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_flowers_qfedavg_stands_still_when_a_norm_overflows_float32():
  params = {"a": np.zeros(1, np.float32)}
  replies = [reply("s", {"a": np.float32([1e20])}, first_loss=1.0)]
  theirs = flower.QFedAvg(client_learning_rate=1.0, q=1e-20)
  ours, _ = strategies.get_strategy("qfedavg:q=1e-20,client_lr=1").aggregate(params, {}, replies)
  assert aggregate(theirs, params, replies)["a"] == 0
  np.testing.assert_allclose(ours["a"], 1e20 / (1 + 1e-20 * 1e20**2), rtol=1e-6)


def test_flowers_trimmed_mean_cuts_by_the_nearest_float():
  values = [0.0] * 29 + [1.0] * 42 + [9.0] * 29
  params = {"a": np.zeros(1, np.float32)}
  replies = [reply(f"s{i:02d}", {"a": np.float32([v])}) for i, v in enumerate(values)]
  ours, _ = strategies.get_strategy("trimmed_mean:trim=0.29").aggregate(params, {}, replies)
  assert ours["a"] == 1 and aggregate(flower.FedTrimmedAvg(beta=0.29), params, replies)["a"] > 1.1


@pytest.mark.parametrize("spec", ["median", "trimmed_mean:trim=0.3", "qfedavg:q=2,client_lr=0.3"])
def test_flowers_empty_the_replies_that_they_are_given(spec):
  theirs, params = PAIRS[spec](), {"a": np.zeros(1, np.float32)}
  given = messages([reply(f"s{i}", params) for i in range(5)])
  if hasattr(theirs, "current_arrays"):
    theirs.current_arrays = record(params)
  theirs.aggregate_train(1, given)
  assert [len(message.content["arrays"]) for message in given] == [0] * 5
