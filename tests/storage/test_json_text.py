"""JSON from outside: deep nesting is rejected."""

import json

import pytest

from afspl_jax.storage import json_text


@pytest.mark.parametrize("outer", ["[%s]", '{"a": %s}', '[1, {"b": [%s]}]'])
@pytest.mark.parametrize("depth", [70, *range(900, 1000, 7), 100_000])
def test_a_value_that_is_nested_too_deep_is_rejected(outer, depth):
  start, _, end = outer.partition("%s")
  with pytest.raises(ValueError, match="deep"):
    json_text.parse_json(start * depth + "1" + end * depth)


def test_a_value_at_the_depth_limit_is_parsed_and_can_be_shown():
  text = "[" * json_text.MAX_DEPTH + "]" * json_text.MAX_DEPTH
  assert repr(json_text.parse_json(text)) == json.dumps(json_text.parse_json(text)) == text


@pytest.mark.parametrize("value", [None, 1.5, "ß", [], {}, [{"a": [1, "b"]}, 2]])
def test_values_are_those_of_pythons_parser(value):
  assert (
    json_text.parse_json(json.dumps(value))
    == json_text.parse_json(json.dumps(value).encode())
    == value
  )


@pytest.mark.parametrize("text", ["", "{", b"\xff", "9" * 5000])
def test_invalid_json_is_a_value_error(text):
  with pytest.raises(ValueError, match=r".+"):
    json_text.parse_json(text)
