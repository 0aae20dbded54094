import dataclasses
import itertools
from fractions import Fraction

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from afspl_jax.config.experiment import Uplink
from afspl_jax.config.fields import check_values
from afspl_jax.errors import UserError
from afspl_jax.federation.protocol import uplink, wire
from afspl_jax.storage.pytrees import zeros_like

# Small integers and dyadic shares: sums and comparisons are exact, in floats as on paper.
WHOLE = st.integers(-4, 4).map(float)
SHARES = st.integers(1, 16).map(lambda n: n / 16)
LEAVES = st.one_of(
  arrays(np.float32, st.tuples(st.integers(0, 8), st.integers(0, 3)), elements=WHOLE),
  arrays(np.float32, (2, 3, 2), elements=WHOLE),
  arrays(np.float32, st.integers(0, 4), elements=WHOLE),
  arrays(np.float32, (), elements=WHOLE),
)
CONFIGS = st.builds(
  Uplink, select=st.sampled_from(["energy", "ratio", "dense"]), energy=SHARES, ratio=SHARES
)
examples = hypothesis_settings(max_examples=150, deadline=None)


def row_energies(leaf):
  leaf = leaf if leaf.ndim > 1 else leaf.reshape(1, leaf.size)
  rows = np.ndindex(leaf.shape[:-1])
  return [sum(Fraction(float(x)) ** 2 for x in leaf[index]) for index in rows]


def chosen(leaf, config):
  mask = uplink.choose({"x": leaf}, config)["x"]
  assert mask.dtype == np.bool_ and mask.shape == uplink.mask_shape(leaf.shape)
  assert np.broadcast_shapes(mask.shape, leaf.shape) == leaf.shape
  return mask.ravel().tolist()


@examples
@given(leaf=LEAVES, energy=SHARES)
def test_energy_sends_the_fewest_rows_that_reach_the_share(leaf, energy):
  sent, rows = chosen(leaf, Uplink(select="energy", energy=energy)), row_energies(leaf)
  needed = Fraction(energy) * sum(rows)
  assert sum(itertools.compress(rows, sent)) >= needed
  fewer = itertools.combinations(rows, max(sum(sent) - 1, 0))
  assert not any(sent) or all(sum(some) < needed for some in fewer)
  assert all(row > 0 for row in itertools.compress(rows, sent))


@examples
@given(leaf=LEAVES, ratio=SHARES)
def test_ratio_sends_that_share_of_rows_rounded_up_and_those_of_most_energy(leaf, ratio):
  sent, rows = chosen(leaf, Uplink(select="ratio", ratio=ratio)), row_energies(leaf)
  assert sum(sent) == -(-len(rows) * int(ratio * 16) // 16)
  unsent = [row for row, is_sent in zip(rows, sent, strict=True) if not is_sent]
  assert min(itertools.compress(rows, sent), default=0) >= max(unsent, default=0)


@pytest.mark.parametrize("ratio, rows, count", [(0.07, 100, 7), (0.35, 20, 7), (0.29, 100, 29)])
def test_ratio_is_meant_in_decimal(ratio, rows, count):
  assert sum(chosen(np.ones((rows, 2), np.float32), Uplink(select="ratio", ratio=ratio))) == count


@pytest.mark.parametrize("config", [Uplink("energy", energy=0.9), Uplink("ratio", ratio=0.75)])
def test_of_equal_rows_the_lower_index_is_sent(config):
  # Many rows: NumPy's default sort keeps the order of few.
  leaf = np.float32([[1], [-2], [-1], [2]] * 250)
  assert chosen(leaf, config) == [True] * 500 + [False, True] * 250


@pytest.mark.parametrize("select, sent", [("energy", False), ("ratio", True), ("dense", True)])
def test_a_leaf_that_did_not_change_sends_nothing_by_energy(select, sent):
  for leaf in (np.zeros((4, 2), np.float32), np.zeros(3, np.float32), np.zeros((), np.float32)):
    assert any(chosen(leaf, Uplink(select, energy=1.0))) == sent


def test_all_energy_is_every_row_that_changed_however_little():
  leaf = np.float32([[1e18], [0], [1e-30], [-3e-42]])
  assert chosen(leaf, Uplink("energy", energy=1.0)) == [True, False, True, True]


def test_shares_are_of_each_leaf_apart():
  update = {"large": np.float32([[1e6], [1]]), "small": np.float32([[1e-6], [0]])}
  masks = uplink.choose(update, Uplink("energy", energy=0.9))
  assert [masks[name].ravel().tolist() for name in sorted(masks)] == [[True, False]] * 2


def test_a_row_of_a_pool_is_one_prompt_token():
  update = np.zeros((3, 4, 5), np.float32)
  update[1, 2], update[2, 0, 4] = 1, 3
  mask = uplink.choose([update], Uplink("energy", energy=1.0))[0]
  assert mask.shape == (3, 4, 1) and np.argwhere(mask[..., 0]).tolist() == [[1, 2], [2, 0]]


def same_bits(a, b):
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(x.dtype == y.dtype and x.tobytes() == y.tobytes() for x, y in pairs)


def tree(seed, dtype=np.float32):
  rng = np.random.default_rng(seed)
  leaves = {"pool": (2, 4, 3), "kernel": (5, 2), "bias": (3,), "scale": (), "none": (0, 2)}
  return {name: np.asarray(rng.normal(size=shape), dtype) for name, shape in leaves.items()}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_dense_offers_the_params_to_the_last_bit(dtype):
  params, start = tree(0, dtype), tree(1, dtype)
  params["bias"][:] = -0.0, 1, -0.0
  sent = uplink.compress(params, start, zeros_like(params), Uplink("dense"))
  assert same_bits(sent.params, params)
  assert same_bits(sent.masks, uplink.everywhere(params))
  assert same_bits(sent.residual, zeros_like(params))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("select", ["energy", "ratio"])
@pytest.mark.parametrize("feedback", ["add", "resume"])
def test_what_is_not_sent_is_kept_and_nothing_else(select, feedback, dtype):
  config = Uplink(select, energy=0.6, ratio=0.5, error_feedback=feedback)
  params, start, residual = tree(0, dtype), tree(1, dtype), tree(2, dtype)
  sent = uplink.compress(params, start, residual, config)
  sizes = [mask.size - mask.sum() for mask in jax.tree.leaves(sent.masks)]
  assert sum(sizes) > 3
  for name, mask in sent.masks.items():
    offered = params[name] + residual[name] if feedback == "add" else params[name]
    assert same_bits(sent.params[name], np.where(mask, offered, start[name]))
    assert same_bits(
      sent.residual[name], np.where(mask, np.zeros_like(offered), offered - start[name])
    )


def test_the_params_sent_are_those_that_the_server_unpacks():
  params, start = tree(0), tree(1)
  sent = uplink.compress(params, start, tree(2), Uplink("ratio", ratio=0.3))
  assert same_bits(wire.unpack_update(wire.pack(sent.params, sent.masks), start), sent[:2])


def test_inputs_are_left_alone():
  given_ = [tree(0), tree(1), tree(2)]
  sent = uplink.compress(*given_, Uplink("ratio", ratio=0.3))
  jax.tree.map(lambda leaf: leaf.fill(7), (sent.params, sent.residual))
  assert same_bits(given_, [tree(0), tree(1), tree(2)])


def offer(start, update, residual, config, feedback):
  """A round of a client whose local training adds `update` to where it starts."""
  config = dataclasses.replace(config, error_feedback=feedback)
  begun = uplink.start_params(start, residual, config)
  return uplink.compress(begun + update, start, residual, config)


@pytest.mark.parametrize("feedback", ["add", "resume"])
@examples
@given(
  updates=st.lists(arrays(np.float32, (4, 2), elements=WHOLE), min_size=1, max_size=6),
  moves=arrays(np.float32, (6, 4, 2), elements=WHOLE),
  config=CONFIGS,
)
def test_error_feedback_loses_nothing(feedback, updates, moves, config):
  """What was sent and the last residual sum to all updates, whatever the server does meanwhile."""
  residual, total = zeros_like(updates[0]), np.zeros((4, 2))
  for update, start in zip(updates, moves, strict=False):
    sent, _, residual = offer(start, update, residual, config, feedback)
    total += sent - start
  np.testing.assert_array_equal(total + residual, sum(updates))


@pytest.mark.parametrize("feedback", ["add", "resume"])
@examples
@given(updates=arrays(np.float32, (5, 4, 3, 2), elements=WHOLE), config=CONFIGS)
def test_averaged_over_all_the_global_params_and_the_residuals_hold_every_update(
  feedback, updates, config
):
  """The theory of error feedback is about "cohort"; a power of two of clients averages exactly."""
  start = np.zeros((3, 2), np.float32)
  residuals = [zeros_like(start)] * 4
  for of_clients in updates:
    offers = [
      offer(start, update, residual, config, feedback)
      for update, residual in zip(of_clients, residuals, strict=True)
    ]
    start = np.mean([offer.params for offer in offers], axis=0)
    residuals = [offer.residual for offer in offers]
  np.testing.assert_array_equal(
    start + np.mean(residuals, axis=0), updates.mean(axis=1).sum(axis=0)
  )


def test_only_resume_starts_from_what_was_not_sent():
  start, residual = tree(0), tree(1)
  for feedback in ("add", "none"):
    assert same_bits(uplink.start_params(start, residual, Uplink(error_feedback=feedback)), start)
  begun = uplink.start_params(start, residual, Uplink(error_feedback="resume"))
  assert same_bits(begun, jax.tree.map(np.add, start, residual))


def test_without_error_feedback_nothing_is_kept():
  config = Uplink("ratio", ratio=0.25, error_feedback="none")
  sent = uplink.compress(tree(0), tree(1), zeros_like(tree(0)), config)
  assert same_bits(sent.residual, zeros_like(tree(0)))
  assert not all(mask.all() for mask in jax.tree.leaves(sent.masks))


def test_a_row_that_waits_is_sent_once_its_residual_has_grown():
  config, start = Uplink("ratio", ratio=0.5), np.zeros((2, 1), np.float32)
  residual, sent_rows = zeros_like(start), []
  for _ in range(4):
    _, mask, residual = offer(start, np.float32([[1.0], [0.4]]), residual, config, "resume")
    sent_rows.append(int(mask.ravel().argmax()))
  assert sent_rows == [0, 0, 1, 0]


@pytest.mark.parametrize("select", ["energy", "ratio"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_update_that_is_not_finite_is_not_kept_back_in_silence(select, value):
  update = {"a": {"b": np.float32([[1], [value]])}}
  with pytest.raises(FloatingPointError, match="a/b: the update is not finite"):
    uplink.choose(update, Uplink(select))


def test_a_tree_without_leaves_sends_nothing():
  for select in ("energy", "ratio", "dense"):
    assert uplink.compress({}, {}, zeros_like({}), Uplink(select)) == ({}, {}, {})


BAD = [
  ({"select": "topk"}, "uplink.select: expected one of energy, ratio, shared, dense; got 'topk'"),
  ({"weighing": "mean"}, "uplink.weighing: expected one of coverage, cohort; got 'mean'"),
  ({"energy": 0.0}, "uplink.energy: expected a finite number, above 0 and at most 1; got 0.0"),
  ({"energy": 1.01}, "uplink.energy: .* got 1.01"),
  ({"energy": float("nan")}, "uplink.energy: .* got nan"),
  ({"ratio": -0.1}, "uplink.ratio: .* got -0.1"),
  ({"ratio": 35.0}, "uplink.ratio: .* got 35"),
]


@pytest.mark.parametrize("fields, why", BAD)
def test_a_setting_out_of_range_is_rejected_by_name(fields, why):
  check_values(Uplink(energy=1.0, ratio=1.0), "uplink")
  with pytest.raises(UserError, match=why):
    check_values(Uplink(**fields), "uplink")


@pytest.mark.parametrize("select", ["energy", "ratio", "shared", "dense"])
def test_of_leaves_that_nobody_trains_no_row_is_sent(select):
  start = {"fixed": np.ones((4, 2), np.float32), "free": np.ones((4, 2), np.float32)}
  params = start | {"free": np.arange(8, dtype=np.float32).reshape(4, 2)}
  sent = uplink.compress(params, start, zeros_like(params), Uplink(select), fixed=["fixed"])
  assert not sent.masks["fixed"].any() and sent.masks["free"].any()
  assert sent.params["fixed"].tobytes() == start["fixed"].tobytes()
  assert not sent.residual["fixed"].any()
