"""Floats as integers: what rounding costs, and that no sum can overflow."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afspl_jax.federation.secure.quantise import EXACT, Quantiser


def vectors(chance, clients, size, norm):
  rng = np.random.default_rng(chance)
  out = rng.normal(size=(clients, size)) ** 3  # a few are large
  return norm * out / np.linalg.norm(out, axis=1, keepdims=True)


@settings(max_examples=150, deadline=None)
@given(
  chance=st.integers(0, 2**32),
  clients=st.integers(1, 40),
  bits=st.integers(8, 32),
  most=st.sampled_from([1, 7, 10**4, 10**7]),
  bound=st.floats(1e-3, 1e3),
  size=st.integers(1, 20),
)
def test_a_sum_is_the_plain_one_within_half_a_step_a_weight(
  chance, clients, bits, most, bound, size
):
  if 2 * clients * most * 2 ** (bits - 1) > EXACT:
    return
  q = Quantiser(size, bound, bits, clients, most, counts=1)
  rng = np.random.default_rng(chance)
  weights = rng.integers(1, most, clients, endpoint=True).tolist()
  updates = vectors(chance, clients, size, bound - 2 * q.margin)
  total = np.zeros(q.length, q.word)
  for update, weight in zip(updates, weights, strict=True):
    sent = q.pack(q.encode(update, weight, (weight % 2,)))
    assert sent.size == q.length * q.width
    total += q.unpack(sent)
  found = q.decode(total, clients)
  plain = np.array(weights, float) @ updates
  assert np.abs(found.values - plain).max() <= sum(weights) * q.step / 2 * (1 + 1e-9)
  assert found.weight == sum(weights) and found.counts == (sum(w % 2 for w in weights),)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
  ("clients", "bits", "most"), [(3, 20, 1), (10, 20, 10**7), (128, 8, 2), (2, 32, 1)]
)
def test_the_largest_sum_that_there_can_be_fits_and_one_byte_less_would_not(
  clients, bits, most, sign
):
  q = Quantiser(1, 1.0, bits, clients, most)
  largest = clients * most * 2 ** (bits - 1)
  words = np.array([sign * most * 2 ** (bits - 1), most], np.int64).astype(q.word)
  total = np.zeros(2, q.word)
  for _ in range(clients):
    total += q.unpack(q.pack(words))
  found = q.decode(q.unpack(q.pack(total)), clients)
  assert found.values[0] == sign * largest * q.step and found.weight == clients * most
  assert 2 * largest < 256**q.width and 2 * largest >= 256 ** (q.width - 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 3000), st.integers(8, 24), st.floats(0.1, 1e6))
def test_what_is_sent_is_never_longer_than_the_bound(chance, size, bits, norm):
  bound = 0.37
  try:
    q = Quantiser(size, bound, bits, 3, 1)
  except ValueError:
    return
  (update,) = vectors(chance, 1, size, norm)
  sent = q.encode(update, 1).view(f"i{q.word.itemsize}")[:-1]
  assert np.linalg.norm(sent * q.step) <= bound * (1 + 1e-12)


def test_a_longer_update_keeps_its_direction():
  q = Quantiser(1000, 1.0, 24, 3, 1)
  (update,) = vectors(0, 1, 1000, 50.0)
  words = q.encode(update, 1)
  sent = np.concatenate([words[:-1].astype(np.int32) * q.step])
  assert np.abs(sent - update / 50).max() < 1e-5


@pytest.mark.parametrize(
  ("update", "weight", "counts", "why"),
  [
    (np.zeros(3), 1, (0,), "expected 4 numbers and 1 counts"),
    (np.zeros(4), 1, (), "expected 4 numbers and 1 counts"),
    (np.zeros(4), 0, (0,), "weight: expected 1 to 9"),
    (np.zeros(4), 10, (0,), "weight: expected 1 to 9 .fed.max_examples.; got 10"),
    (np.zeros(4), 2, (3,), "counts: expected 0 to 2"),
    (np.array([0, np.nan, 0, 0]), 1, (0,), "finite norm"),
    (np.array([0, np.inf, 0, 0]), 1, (0,), "finite norm"),
  ],
)
def test_what_was_not_agreed_on_is_not_sent(update, weight, counts, why):
  with pytest.raises(ValueError, match=why):
    Quantiser(4, 1.0, 16, 3, 9, counts=1).encode(update, weight, counts)


@pytest.mark.parametrize(
  ("fields", "why"),
  [
    ({"bits": 32, "max_weight": 10**7}, r"up to 2\*\*53; got up to 2\*\*5"),
    ({"bits": 8, "size": 10**6}, "Raise secure.bits"),
    ({"bound": 0.0}, "clip: expected a finite number above 0"),
    ({"bound": float("inf")}, "clip: expected"),
  ],
)
def test_settings_by_which_sums_would_not_be_exact_are_rejected(fields, why):
  given = {"size": 4, "bound": 1.0, "bits": 16, "clients": 30, "max_weight": 1} | fields
  with pytest.raises(ValueError, match=why):
    Quantiser(**given)


@pytest.mark.parametrize("total", [[2**20, 3, 0], [0, 2, 0], [0, 13, 0], [0, 4, 5]])
def test_what_no_clients_can_have_sent_is_no_sum(total):
  q = Quantiser(1, 1.0, 16, 3, 4, counts=1)
  with pytest.raises(ValueError, match="numbers that cannot be"):
    q.decode(np.array(total, q.word), 3)


def test_the_least_integer_of_a_word_is_no_sum_either():
  q = Quantiser(1, 1.0, 20, 100, 1)
  assert q.width == q.word.itemsize == 4
  with pytest.raises(ValueError, match="numbers that cannot be"):
    q.decode(np.array([2**31, 100], q.word), 100)


def test_a_sum_longer_than_all_clients_together_may_be_is_no_sum():
  """Three send the longest update in one direction; then one of them sends it twice as long."""
  q = Quantiser(4, 1.0, 20, 3, 5)
  words = q.encode(np.full(4, 7.0), 2)
  total = 3 * words
  assert np.linalg.norm(q.decode(total, 3).values) == pytest.approx(6, rel=1e-4)
  total[:4] += words[:4]
  with pytest.raises(ValueError, match=r"of norm up to 6; got norm 8 and weight 6, numbers that"):
    q.decode(total, 3)
