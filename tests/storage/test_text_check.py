"""Which texts from outside can be used."""

import pytest

from afspl_jax.storage.text_check import is_blank, is_text


@pytest.mark.parametrize(
  "text", ["a", " a ", "7", "…", "😀", "犬", "\u200ba", "a\u200d", "é", "\ue000"]
)
def test_a_visible_character_makes_a_text(text):
  assert is_text(text) and not is_blank(text)


@pytest.mark.parametrize(
  "text",
  [
    "",
    " \n\t",
    "\u200b",
    "\u200c\u200d\u2060\ufeff",
    "\0\0",
    "\x1b\x07",
    "\u00a0\u3000\u2028",
    "\u00ad\u034f",
    "\u3164 \u115f\u1160\uffa0",
    "\u2800\ufe0f\u180b\u180e",
  ],
)
def test_spaces_control_characters_and_characters_of_no_width_are_blank(text):
  assert is_blank(text) and not is_text(text)


@pytest.mark.parametrize("value", ["a\0b", "\ud800", "a\udfff", None, 5, ["a"], b"a"])
def test_nul_half_characters_and_other_values_are_no_text(value):
  assert not is_text(value)
