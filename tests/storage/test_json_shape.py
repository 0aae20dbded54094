import math

import pytest

from afspl_jax.storage.json_shape import find_mismatch


@pytest.mark.parametrize(
  "value, shape",
  [
    (3, int),
    (3, float),
    (0.5, float),
    ("ß", str),
    (True, bool),
    (None, None),
    ([1, "a"], list),
    ({"a": []}, object),
    (None, (int, None)),
    ([1, 2], [int]),
    ([], [int]),
    ({"a": 1}, {"a": int, "b?": str}),
    ({"a": 1, "b": "x", "c": [None]}, {"a": int, "b?": str}),  # other fields are ignored
    ({"a": 1, "c": 0.5}, {"a": int, "*": float}),
    ({"*": 1}, {"*": int}),
  ],
)
def test_a_value_matches_its_shape(value, shape):
  assert find_mismatch(value, shape) == ""


@pytest.mark.parametrize(
  "value, shape, where",
  [
    (True, int, "it is True"),
    (0.5, int, "it is 0.5"),
    (math.nan, float, "it is nan"),
    (10**300, float, "it is 1000"),
    ("\ud800", str, "it is '\\ud800'"),
    ("1", (int, None), "it is '1'"),
    ({"shape": 1}, {"shape?": ()}, "shape is 1"),
    ([1, "x"], [int], "[] is 'x'"),
    ({}, {"a": int}, "no a"),
    ([], {"a": int}, "it is []"),
    ({"a": {"b": [{"c": None}]}}, {"a": {"*": [{"c": int}]}}, "a.b[].c is None"),
    ({"a": {}}, {"a": {"b": int}}, "no a.b"),
    ({"a": 1, "b": 2}, {"a": int, "b?": str}, "b is 2"),
  ],
)
def test_a_mismatch_is_named_by_its_place(value, shape, where):
  assert find_mismatch(value, shape).startswith(where)
