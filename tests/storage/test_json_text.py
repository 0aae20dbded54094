"""JSON from outside: what is unclear or nested too deep is rejected."""

import json
import re

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


@pytest.mark.parametrize(
  ("text", "problem"),
  [
    ('{"a": 1, "a": 1}', "the key 'a' twice in one object: line 1 column 10 (char 9)"),
    ('[{"a": 1},\n {"b": {"c": 1},\n "b": 2}]', "the key 'b' twice in one object: line 3 column 2"),
    ('{"a": {"a": 1}, "b": ["a", "a"], "\\u0061": 2}', "the key 'a' twice in one object: line 1"),
    ('{"a": "\\"a\\": {", "a" : 1}', "the key 'a' twice in one object: line 1 column 19"),
    ('{"id": NaN}', "the number NaN, which is not finite: line 1 column 8"),
    ('["NaN", true, null, -1.5e3, 2, -Infinity]', "the number -Infinity, which is not finite"),
    ("[1,\n 1e999]", "the number 1e999, which is not finite: line 2 column 2"),
  ],
)
def test_what_readers_of_json_disagree_on_is_rejected_with_its_place(text, problem):
  for given in (text, text.encode(), text.encode("utf-16")):
    with pytest.raises(ValueError, match=re.escape(problem)):
      json_text.parse_json(given)


def test_the_same_key_in_several_objects_is_accepted():
  value = [{"a": {"a": 1, "b": [{"a": 2}, {"a": 3}]}}, {"a": 9**400}]
  assert json_text.parse_json(json.dumps(value)) == value
