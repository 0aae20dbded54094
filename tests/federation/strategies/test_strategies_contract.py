"""What every strategy must keep, found by discovery, so that a new file is covered by itself."""

import copy
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afspl_jax.federation import strategies
from afspl_jax.federation.protocol import uplink
from afspl_jax.federation.strategies import Strategy
from afspl_jax.storage.checkpoints import Checkpoints
from tests.federation.strategies.strategy_replies import (
  SITES,
  assert_close,
  bits,
  draw,
  like,
  replies_near,
  reply,
  sparse_replies,
  unsent,
  vector,
)

every_strategy = pytest.mark.parametrize("name", strategies.known_strategies())

# Those whose every row follows from its senders alone.
ROW_BY_ROW = (
  "fedavg",
  "fedavgm",
  "fedadam",
  "fedyogi",
  "fedadagrad",
  "median",
  "trimmed_mean",
  "scaffold",
)

ROBUST = ("median", "trimmed_mean", "krum", "krum:multi=3", "krum:faulty=2,multi=2")


def seeded(seed=0):
  rng = np.random.default_rng(seed)
  return draw(rng), rng


@every_strategy
def test_it_is_a_strategy(name):
  assert isinstance(strategies.get_strategy(name, SITES), Strategy)


@every_strategy
def test_the_order_of_replies_changes_no_bit(name):
  strategy, (params, rng) = strategies.get_strategy(name, SITES), seeded()
  state = strategy.aggregate(params, strategy.init(params), replies_near(params, rng))[1]
  # Large terms that cancel: a sum in the order of arrival does depend on it.
  replies = sparse_replies(params, rng)
  for one, sign in zip(replies, itertools.cycle((1e18, -1e18, 1)), strict=False):
    one.params["pool"] *= np.float32(sign)
    one.control["pool"] *= np.float32(sign)
  naive, results = set(), set()
  for _ in range(20):
    order = [replies[i] for i in rng.permutation(len(replies))]
    naive.add(bits(sum(r.num_examples * r.params["pool"].astype(np.float64) for r in order)))
    results.add(bits(strategy.aggregate(params, state, order)))
  assert len(naive) > 1 and len(results) == 1


@every_strategy
def test_a_row_that_nobody_sent_changes_no_bit_of_params_and_state(name):
  strategy, (params, rng) = strategies.get_strategy(name, SITES), seeded()
  params["mapper"]["kernel"][1] = -0.0, 1e-40
  params, state = strategy.aggregate(params, strategy.init(params), replies_near(params, rng))
  for _ in range(3):
    replies = sparse_replies(params, rng)
    new_params, new_state = strategy.aggregate(params, state, replies)
    nobody = unsent(params, replies)
    assert nobody["mapper"]["kernel"][1].all() and nobody["scale"]
    shaped = [
      tree for tree in state if jax.tree.structure(state[tree]) == jax.tree.structure(params)
    ]
    assert set(shaped) == set(state)
    for old, new in [(params, new_params), *((state[tree], new_state[tree]) for tree in shaped)]:
      pick = lambda leaf, mask: np.asarray(leaf)[mask]  # noqa: E731
      assert bits(jax.tree.map(pick, old, nobody)) == bits(jax.tree.map(pick, new, nobody))
      sent = jax.tree.map(np.logical_not, nobody)
      assert bits(jax.tree.map(pick, old, sent)) != bits(jax.tree.map(pick, new, sent))
    params, state = new_params, new_state


@every_strategy
def test_dtypes_and_shapes_of_params_and_state_are_constant(name):
  strategy, (params, rng) = strategies.get_strategy(name, SITES), seeded()
  state = strategy.init(params)
  described = jax.tree.map(lambda leaf: (leaf.dtype, leaf.shape), (params, state))
  for make in (replies_near, sparse_replies, replies_near):
    params, state = strategy.aggregate(params, state, make(params, rng))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves((params, state)))
    assert jax.tree.map(lambda leaf: (leaf.dtype, leaf.shape), (params, state)) == described


@every_strategy
def test_a_run_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(name, tmp_path):
  strategy, (params, rng) = strategies.get_strategy(name, SITES), seeded()
  checkpoints = Checkpoints(tmp_path)
  before = strategy.aggregate(params, strategy.init(params), replies_near(params, rng))
  checkpoints.save(1, dict(zip(("params", "strategy_state"), before, strict=True)))
  template = {"params": params, "strategy_state": strategies.get_strategy(name, SITES).init(params)}
  _, restored = checkpoints.restore(template)
  checkpoints.close()
  replies = replies_near(before[0], rng)
  straight = strategy.aggregate(*before, replies)
  resumed = strategies.get_strategy(name, SITES).aggregate(
    restored["params"], restored["strategy_state"], replies
  )
  assert bits(straight) == bits(resumed)


@every_strategy
def test_replies_that_changed_nothing_change_nothing(name):
  strategy, (params, rng) = strategies.get_strategy(name, SITES), seeded()
  replies = [r._replace(params=params) for r in replies_near(params, rng)]
  out, _ = strategy.aggregate(params, strategy.init(params), replies)
  assert bits(out) == bits(params)


@every_strategy
def test_the_inputs_are_left_alone(name):
  strategy, (params, rng) = strategies.get_strategy(name, SITES), seeded()
  replies, state = sparse_replies(params, rng), strategy.init(params)
  given = copy.deepcopy((params, state, replies))
  strategy.aggregate(params, state, replies)
  trees = lambda some: [(r.params, r.masks, r.control) for r in some]  # noqa: E731
  assert bits((params, state, trees(replies))) == bits((*given[:2], trees(given[2])))


@every_strategy
def test_the_penalty_is_traceable_and_nothing_at_the_global_params(name):
  params, _ = seeded()
  penalty = strategies.get_strategy(name, SITES).client_penalty
  params = jax.tree.map(jnp.asarray, params)
  value, grads = jax.jit(jax.value_and_grad(penalty))(params, params)
  assert value.shape == () and value == 0
  assert all((grad == 0).all() for grad in jax.tree.leaves(grads))


@pytest.mark.parametrize("name", ROW_BY_ROW)
def test_a_row_is_what_its_senders_alone_make_of_it(name):
  strategy, (params, rng) = strategies.get_strategy(name, SITES), seeded()
  replies = sparse_replies(params, rng)
  out, _ = strategy.aggregate(params, strategy.init(params), replies)
  compared = 0
  for index in np.ndindex(params["pool"].shape[:-1]):
    senders = [r for r in replies if r.masks["pool"][index].all()]
    row = {"row": params["pool"][index]}
    alone = [reply(r.site, {"row": r.params["pool"][index]}, r.num_examples) for r in senders]
    if alone:
      expected, _ = strategy.aggregate(row, strategy.init(row), alone)
      assert bits(expected["row"]) == bits(out["pool"][index])
      compared += 1
  assert compared > 3


def test_qfedavg_sums_over_the_sites_that_sent_a_row():
  """Algorithm 2 with both of its sums over them; the norms are of whole updates."""
  params, rng = seeded()
  replies = sparse_replies(params, rng)
  L, tops, bottoms = 10, 0, 0
  for r in replies:
    dw, F = L * (vector(params) - vector(r.params)), r.metrics["first_loss"]
    sent = vector(jax.tree.map(np.broadcast_to, r.masks, jax.tree.map(np.shape, params)))
    tops = tops + sent * F * dw
    bottoms = bottoms + sent * (np.sum(dw**2) + L * F)
  x = vector(params)
  expected = like(params, np.where(bottoms > 0, x - tops / np.maximum(bottoms, 1e-9), x))
  out, _ = strategies.get_strategy("qfedavg:client_lr=0.1").aggregate(params, {}, replies)
  assert_close(out, expected)


def test_multi_krum_averages_a_row_over_the_picked_sites_that_sent_it():
  params = {"a": np.zeros((3, 2), np.float32)}
  full, first = np.ones((3, 1), np.bool_), np.array([[True], [False], [False]])
  near = [reply(f"s{i}", {"a": params["a"] + 0.01 * i}, 1, {"a": full}) for i in range(4)]
  one_row = reply("s4", {"a": np.where(first, np.float32(0.1), params["a"])}, 1, {"a": first})
  far = reply("s5", {"a": params["a"] + 9}, 1, {"a": full})
  out, _ = strategies.get_strategy("krum:multi=5").aggregate(params, {}, [*near, one_row, far])
  mean = np.mean([0, 0.01, 0.02, 0.03])
  expected = [[np.mean([0, 0.01, 0.02, 0.03, 0.1])] * 2, [mean] * 2, [mean] * 2]
  np.testing.assert_allclose(out["a"], expected, rtol=1e-6)


def within_the_honest(spec, wild, position):
  """Whether every entry lies in the honest replies' range when one more site sends `wild`."""
  params, rng = seeded()
  honest = [r._replace(num_examples=1) for r in replies_near(params, rng, 9)]
  spoilt = jax.tree.map(lambda leaf: np.full(leaf.shape, wild, leaf.dtype), params)
  faulty = reply(f"s{position}_", spoilt, 2**29, first_loss=1.0)
  strategy = strategies.get_strategy(spec)
  out, _ = strategy.aggregate(params, strategy.init(params), [faulty, *honest])
  low, high = (f([vector(r.params) for r in honest], axis=0) for f in (np.min, np.max))
  return bool(((low <= vector(out)) & (vector(out) <= high)).all())


@pytest.mark.parametrize("position", [0, 4, 8])
@pytest.mark.parametrize("wild", [1e30, -1e30, 100.0])
@pytest.mark.parametrize("spec", ROBUST)
def test_one_wild_reply_moves_a_robust_strategy_no_further_than_the_honest_do(spec, wild, position):
  assert within_the_honest(spec, wild, position)


@pytest.mark.parametrize("spec", ["fedavg", "trimmed_mean:trim=0", "fedadam"])
def test_one_wild_reply_moves_the_others_as_far_as_it_likes(spec):
  assert not within_the_honest(spec, 1e30, 4)


@every_strategy
def test_cohort_weighing_counts_what_was_not_sent_as_unchanged(name):
  """The same replies, their masks all True, are dense replies like any other."""
  strategy, (params, rng) = strategies.get_strategy(name, SITES), seeded()
  replies = [r._replace(masks=uplink.everywhere(params)) for r in sparse_replies(params, rng)]
  out, _ = strategy.aggregate(params, strategy.init(params), replies)
  assert bits(out["scale"]) == bits(params["scale"])
