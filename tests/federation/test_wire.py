import io

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st

from afspl_jax.federation import wire

BITS = {"float32": np.uint32, "float16": np.uint16, "bfloat16": np.uint16}


def params():
  return {
    "pool": {"prompts": np.arange(6, dtype=np.float32).reshape(1, 2, 3), "scale": np.float32(2)},
    "gate": {"w": np.array([-0.0, 1e-40, 3e38], np.float32), "empty": np.zeros((0, 4), np.float32)},
    "half": np.array([6e-8, -65504, 0.1], np.float16),
    "brain": np.array([[1e-40], [3.3e38]], ml_dtypes.bfloat16),
  }


def assert_same_bits(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert (np.shape(x), np.asarray(x).dtype) == (y.shape, y.dtype)
    assert np.asarray(x).tobytes() == y.tobytes()


def test_round_trip_is_bit_identical():
  assert_same_bits(params(), wire.unpack(wire.pack(params()), params()))


@settings(max_examples=60, deadline=None)
@given(dtype=st.sampled_from(sorted(BITS)), seed=st.integers(0, 2**32 - 1), size=st.integers(1, 99))
def test_every_finite_bit_pattern_survives(dtype, seed, size):
  kind = BITS[dtype]
  bits = np.random.default_rng(seed).integers(0, np.iinfo(kind).max, size, kind, endpoint=True)
  leaf = bits.view(np.dtype(dtype))
  with np.errstate(invalid="ignore"):  # ml_dtypes warns of signalling NaNs
    leaf = leaf[np.isfinite(leaf)]
  assert_same_bits({"x": leaf}, wire.unpack(wire.pack({"x": leaf}), {"x": leaf}))


def test_round_trip_of_jax_arrays_from_shapes_alone():
  tree = jax.tree.map(jnp.asarray, params())
  shapes = jax.eval_shape(lambda: tree)
  assert_same_bits(tree, wire.unpack(wire.pack(tree), shapes))


def test_one_array_travels_however_many_leaves():
  assert len(wire.pack({f"leaf{i}": np.zeros(3, np.float32) for i in range(50)})) == 1


def test_unpacked_params_are_writable_and_share_nothing_with_the_record():
  record = wire.pack(params())
  wire.unpack(record, params())["pool"]["prompts"][:] = 7
  assert_same_bits(params(), wire.unpack(record, params()))


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.bool_, np.uint8, np.complex64])
def test_other_dtypes_are_refused_by_path(dtype):
  tree = {"a": {"b": np.zeros(2, dtype)}}
  for refuse in (wire.pack, wire.structure_digest, lambda t: wire.unpack(ArrayRecord(), t)):
    with pytest.raises(wire.WireError, match=r"a/b: expected one of|expected the one array"):
      refuse(tree)


def npy(array):
  stream = io.BytesIO()
  np.save(stream, array)
  return stream.getvalue()


def raw(data, size=4):
  return Array(dtype="float32", shape=(size,), stype="numpy.ndarray", data=data)


HUGE = npy(np.zeros(4, np.float32)).replace(b"(4,), }" + b" " * 9, b"(4000000000,), }")
PICKLE = io.BytesIO()
np.save(PICKLE, np.array([{"a": 1}], dtype=object), allow_pickle=True)
GOOD = np.arange(4, dtype=np.float32)

BAD = {
  "no array": ({}, "expected the one array"),
  "extra array": ({"flat": Array(GOOD), "more": Array(GOOD)}, "expected the one array"),
  "other name": ({"params": Array(GOOD)}, "expected the one array"),
  "float64": ({"flat": Array(GOOD.astype(np.float64))}, "got float64"),
  "float16": ({"flat": Array(GOOD.astype(np.float16))}, "got float16"),
  "big endian": ({"flat": Array(GOOD.astype(">f4"))}, "got >f4"),
  "two dimensions": ({"flat": Array(GOOD.reshape(4, 1))}, r"of shape \(4, 1\)"),
  "too short": ({"flat": Array(GOOD[:3])}, r"of shape \(3,\)"),
  "too long": ({"flat": Array(np.zeros(5, np.float32))}, r"of shape \(5,\)"),
  "far too long": ({"flat": Array(np.zeros(99_999, np.float32))}, "expected about 16 bytes"),
  "nan": ({"flat": Array(GOOD * np.array([1, 1, np.nan, 1], np.float32))}, "b: .* 1 of 2 are not"),
  "inf": ({"flat": Array(np.array([0, np.inf, 0, 0], np.float32))}, "a: .* 1 of 2 are not"),
  "no npy": ({"flat": raw(b"abc")}, "npy format"),
  "nothing": ({"flat": raw(b"")}, "npy format"),
  "data cut short": ({"flat": raw(npy(GOOD)[:-1])}, "expected 16 bytes of data; got 15"),
  "bytes after the data": ({"flat": raw(npy(GOOD) + b"x")}, "expected 16 bytes of data; got 17"),
  "header claims 16 GB": ({"flat": raw(HUGE)}, r"of shape \(4000000000,\)"),
  "pickle": ({"flat": raw(PICKLE.getvalue())}, "got object"),
  "version 2": ({"flat": raw(npy(GOOD).replace(b"NUMPY\x01", b"NUMPY\x02"))}, "npy"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_payload_is_refused_with_expected_and_got(case):
  arrays, why = BAD[case]
  template = {"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float32)}
  wire.unpack(ArrayRecord({"flat": Array(GOOD)}), template)
  with pytest.raises(wire.WireError, match=why):
    wire.unpack(ArrayRecord(arrays), template)


def test_a_value_too_large_for_the_leaf_is_refused():
  record = ArrayRecord({"flat": Array(np.array([1e30], np.float32))})
  with pytest.raises(wire.WireError, match="a: expected finite"):
    wire.unpack(record, {"a": np.zeros(1, np.float16)})


def test_structure_digest_is_of_paths_shapes_and_dtypes():
  one = {"a": {"b": np.zeros((2, 3), np.float32)}, "c": np.zeros(1, np.float32)}
  same = {"c": jnp.ones(1), "a": {"b": jnp.ones((2, 3))}}
  others = [
    {"a": {"x": np.zeros((2, 3), np.float32)}, "c": np.zeros(1, np.float32)},
    {"a": {"b": np.zeros((3, 2), np.float32)}, "c": np.zeros(1, np.float32)},
    {"a": {"b": np.zeros((2, 3), np.float16)}, "c": np.zeros(1, np.float32)},
  ]
  digests = [wire.structure_digest(tree) for tree in (one, *others)]
  assert wire.structure_digest(same) == digests[0]
  assert len(set(digests)) == 4


def test_bytes_are_those_of_flowers_own_objects():
  TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
  content = RecordDict(
    {
      "arrays": wire.pack(params()),
      "metrics": MetricRecord({"loss": 1.0}),
      "config": ConfigRecord({"round": 3}),
    }
  )
  message = Message(content, 2, "train", group_id="3")
  flowers = {k: obj.deflate() for k, obj in get_all_nested_objects(message).items()}
  assert wire.serialized(message) == flowers
  assert wire.record_bytes(message) == sum(len(data) for data in flowers.values())


def test_bytes_grow_by_four_a_float():
  small, large = ({"a": np.random.default_rng(0).random(n, np.float32)} for n in (1000, 3000))
  grown = wire.record_bytes(wire.pack(large)) - wire.record_bytes(wire.pack(small))
  assert abs(grown - 4 * 2000) <= 4  # digits of the length in headers
