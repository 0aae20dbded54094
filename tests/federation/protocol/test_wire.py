import io

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from afspl_jax.federation.protocol import uplink, wire

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


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0)])
def test_leaves_without_elements_travel(shape):
  tree = {"empty": np.zeros(shape, np.float32), "full": np.ones((2, 3), np.float32)}
  values, _ = wire.unpack_update(wire.pack(tree), jax.tree.map(np.zeros_like, tree))
  assert_same_bits(values, tree)


def test_what_sent_rows_add_comes_back_as_a_tree_that_is_zero_elsewhere():
  rng = np.random.default_rng(0)
  shapes = {"wide": (3, 4, 2), "line": (5,), "one": (), "none": (0, 3), "thin": (2, 0)}
  base, new = ({k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()} for _ in "ab")
  base, new = jax.tree.map(np.asarray, (base, new))
  masks = {name: rng.random(uplink.mask_shape(shape)) < 0.6 for name, shape in shapes.items()}
  values = wire.sent_values(new, base, masks)
  assert len(values) == sum(wire.values_sent(base, masks)) < sum(x.size for x in base.values())
  for name, leaf in wire.values_as_tree(values, base, masks).items():
    added = np.subtract(new[name], base[name], dtype=np.float64)
    assert leaf.shape == added.shape and np.array_equal(leaf, np.where(masks[name], added, 0))
  with pytest.raises(wire.WireError, match=f"expected {len(values)} values; got {len(values) + 1}"):
    wire.values_as_tree(np.zeros(len(values) + 1), base, masks)


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
def test_other_dtypes_are_rejected_by_path(dtype):
  tree = {"a": {"b": np.zeros(2, dtype)}}
  for reject in (wire.pack, wire.structure_digest, lambda t: wire.unpack(ArrayRecord(), t)):
    with pytest.raises(wire.WireError, match=r"a/b: expected one of|expected the one array"):
      reject(tree)


def npy(array):
  stream = io.BytesIO()
  np.save(stream, array)
  return stream.getvalue()


def raw(data, size=4):
  return Array(dtype="float32", shape=(size,), stype="numpy.ndarray", data=data)


def with_header(text, data=bytes(16)):
  return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + data


HUGE = npy(np.zeros(4, np.float32)).replace(b"(4,), }" + b" " * 9, b"(4000000000,), }")
RUN = b"cposix\nsystem\n(S'exit 1'\ntR."  # unpickling this runs a command
OBJECTS = with_header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", RUN)
GOOD = np.arange(4, dtype=np.float32)

BAD = {
  "no array": ({}, "expected the one array"),
  "extra array": ({"flat": Array(GOOD), "more": Array(GOOD)}, "expected the one array"),
  "rows": ({"flat": Array(GOOD), "rows": Array(GOOD)}, "expected the one array"),
  "other name": ({"params": Array(GOOD)}, "expected the one array"),
  "float64": (
    {"flat": Array(GOOD.astype(np.float64))},
    "expected float32 of shape .4,. in 'flat'; got .*<f8",
  ),
  "float16": ({"flat": Array(GOOD.astype(np.float16))}, "got .*<f2"),
  "big endian": ({"flat": Array(GOOD.astype(">f4"))}, "got .*>f4"),
  "two dimensions": ({"flat": Array(GOOD.reshape(4, 1))}, r"got .*'shape': \(4, 1\)"),
  "too short": ({"flat": Array(GOOD[:3])}, r"got .*'shape': \(3,\)"),
  "too long": ({"flat": Array(np.zeros(5, np.float32))}, r"got .*'shape': \(5,\)"),
  "nan": ({"flat": Array(GOOD * np.array([1, 1, np.nan, 1], np.float32))}, "b: .* 1 of 2 are not"),
  "inf": ({"flat": Array(np.array([0, np.inf, 0, 0], np.float32))}, "a: .* 1 of 2 are not"),
  "no npy": ({"flat": raw(b"abc")}, "npy format"),
  "nothing": ({"flat": raw(b"")}, "npy format"),
  "data cut short": ({"flat": raw(npy(GOOD)[:-1])}, "expected 16 bytes of data; got 15"),
  "bytes after the data": ({"flat": raw(npy(GOOD) + b"x")}, "expected 16 bytes of data; got 17"),
  "header cut short": ({"flat": raw(npy(GOOD)[:70])}, "expected 16 bytes of data; got -58"),
  "header claims 16 GB": ({"flat": raw(HUGE)}, r"got .*'shape': \(4000000000,\)"),
  "header cannot be parsed": ({"flat": raw(with_header("{("))}, "expected float32"),
  "header too deep to parse": ({"flat": raw(with_header("-" * 9000 + "1"))}, "expected float32"),
  "pickle": ({"flat": raw(OBJECTS)}, r"got .*\|O"),
  "version 2": ({"flat": raw(npy(GOOD).replace(b"NUMPY\x01", b"NUMPY\x02"))}, "npy"),
}
TWO = {"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float32)}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_payload_is_rejected_with_expected_and_got(case):
  arrays, why = BAD[case]
  wire.unpack(ArrayRecord({"flat": Array(GOOD)}), TWO)
  with pytest.raises(wire.WireError, match=why):
    wire.unpack(ArrayRecord(arrays), TWO)


@pytest.mark.parametrize("case", sorted(BAD.keys() - {"rows"}))
def test_a_bad_dense_update_is_rejected_too(case):
  arrays, why = BAD[case]
  with pytest.raises(wire.WireError, match=why.replace("the one array", "the array")):
    wire.unpack_update(ArrayRecord(arrays), TWO)


# A sparse update of 3 + 1 rows: the first and the third of `a`, and `b`.
BASE = {"a": np.full((3, 2), 9, np.float32), "b": np.full(5, 9, np.float32)}
ROWS = np.array([0b10110000], np.uint8)
VALUES = np.arange(9, dtype=np.float32)


def sparse(rows=ROWS, flat=VALUES):
  return {"flat": Array(flat), "rows": Array(rows)}


def test_rows_not_sent_have_the_values_of_the_base():
  found, rows = wire.unpack_update(ArrayRecord(sparse()), BASE)
  masks = {"a": np.array([[True], [False], [True]]), "b": np.array([True])}
  params = {"a": np.array([[0, 1], [9, 9], [2, 3]], np.float32), "b": VALUES[4:]}
  assert_same_bits(masks, rows)
  assert_same_bits(params, found)


BAD_SPARSE = {
  "no values": ({"rows": Array(ROWS)}, "expected the array 'flat', perhaps 'rows'; got .'rows'."),
  "extra array": (sparse() | {"more": Array(ROWS)}, "expected the array"),
  "bits of fewer rows": (sparse(ROWS[:0]), r"uint8 of shape \(1,\) in 'rows'; got .*\(0,\)"),
  "bits of more rows": (
    sparse(np.append(ROWS, ROWS)),
    r"uint8 of shape \(1,\) in 'rows'; got .*\(2,\)",
  ),
  "padding bit": (sparse(ROWS | 1), "rows: expected zeros after the bits of 4 rows; got ones"),
  "bits as int8": (sparse(ROWS.astype(np.int8)), r"expected uint8 .*'rows'; got .*\|i1"),
  "bits as bool": (sparse(np.array([True])), r"expected uint8 .*'rows'; got .*\|b1"),
  "bits as float32": (sparse(ROWS.astype(np.float32)), r"expected uint8 .*'rows'; got .*<f4"),
  "bits in two axes": (sparse(ROWS[None]), r"'rows'; got .*\(1, 1\)"),
  "bits cut short": ({"flat": Array(VALUES), "rows": raw(npy(ROWS)[:-1])}, "rows: expected 1 byte"),
  "bits are a pickle": (
    {"flat": Array(VALUES), "rows": raw(OBJECTS)},
    r"'rows'; got .*\|O",
  ),
  "bits are huge": ({"flat": Array(VALUES), "rows": raw(HUGE)}, r"'rows'; got .*\(4000000000,\)"),
  "too few values": (sparse(flat=VALUES[:8]), r"float32 of shape \(9,\) in 'flat'; got .*\(8,\)"),
  "too many values": (sparse(flat=np.append(VALUES, VALUES)), r"'flat'; got .*\(18,\)"),
  "values of all rows": (sparse(flat=np.zeros(11, np.float32)), r"'flat'; got .*\(11,\)"),
  "values as float64": (sparse(flat=VALUES.astype(float)), "'flat'; got .*<f8"),
  "nan": (sparse(flat=np.where(VALUES == 3, np.nan, VALUES).astype("f4")), "a: .* 1 of 4 are not"),
  "inf": (sparse(flat=np.where(VALUES > 6, np.inf, VALUES).astype("f4")), "b: .* 2 of 5 are not"),
}


@pytest.mark.parametrize("case", BAD_SPARSE)
def test_a_bad_sparse_update_is_rejected_with_expected_and_got(case):
  arrays, why = BAD_SPARSE[case]
  with pytest.raises(wire.WireError, match=why):
    wire.unpack_update(ArrayRecord(arrays), BASE)


def test_a_sparse_record_is_no_dense_one():
  with pytest.raises(wire.WireError, match="expected the one array"):
    wire.unpack(ArrayRecord(sparse()), BASE)


def some_rows(tree, seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda mask: rng.random(mask.shape) < 0.5, uplink.everywhere(tree))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_sparse_round_trip_is_bit_identical_in_all_dtypes_and_shapes(seed):
  tree, masks = params(), jax.tree.map(np.asarray, some_rows(params(), seed))
  base = jax.tree.map(lambda leaf: np.asarray(leaf - 1, leaf.dtype), tree)
  found, rows = wire.unpack_update(wire.pack(tree, masks), base)
  assert_same_bits(masks, rows)
  assert_same_bits(jax.tree.map(np.where, masks, tree, base), found)


def test_an_update_of_all_rows_travels_as_the_dense_one():
  record = wire.pack(params(), uplink.everywhere(params()))
  assert wire.serialized(record) == wire.serialized(wire.pack(params()))
  found, rows = wire.unpack_update(record, jax.tree.map(np.zeros_like, params()))
  assert_same_bits(params(), found)
  assert_same_bits(uplink.everywhere(params()), rows)


def test_an_update_of_no_row_is_the_base():
  nothing = jax.tree.map(np.zeros_like, uplink.everywhere(BASE))
  found, rows = wire.unpack_update(wire.pack(jax.tree.map(np.ones_like, BASE), nothing), BASE)
  assert_same_bits(BASE, found)
  assert_same_bits(nothing, rows)


def test_unpacked_updates_share_nothing_with_record_or_base():
  record, base = ArrayRecord(sparse()), jax.tree.map(np.copy, BASE)
  jax.tree.map(lambda leaf: leaf.fill(7), wire.unpack_update(record, base)[0])
  assert_same_bits(BASE, base)
  assert wire.unpack_update(record, base)[0]["a"][0, 1] == 1


def test_the_base_may_lie_in_any_memory_order():
  base = {"a": np.asfortranarray(BASE["a"]), "b": BASE["b"]}
  record = ArrayRecord(sparse())
  assert_same_bits(wire.unpack_update(record, base), wire.unpack_update(record, BASE))


def test_a_tree_without_leaves_travels():
  for record in (wire.pack({}), wire.pack({}, {})):
    assert wire.unpack(record, {}) == {}
    assert wire.unpack_update(record, {}) == ({}, {})


def test_a_value_too_large_for_the_leaf_is_rejected():
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
