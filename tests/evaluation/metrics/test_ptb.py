import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afspl_jax.evaluation.metrics import ptb
from afspl_jax.evaluation.metrics.ptb import tokenize

PUNCTUATION = {"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"}


def test_tokens_equal_stanford_on_the_golden_lines(golden_lines):
  wrong = [line["text"] for line in golden_lines if tokenize(line["text"]) != line["tokens"]]
  assert len(golden_lines) == 297
  assert wrong == []


def test_tokens_equal_stanford_on_the_golden_captions(golden_scores):
  for item in golden_scores["items"]:
    assert tokenize(item["candidate"]) == item["candidate_tokens"]
    assert [tokenize(text) for text in item["references"]] == item["reference_tokens"]


# Expected tokens in this file are Stanford's own, from PTBTokenizer 3.4.1.
@pytest.mark.parametrize(
  ("text", "tokens"),
  [
    ("It's the dogs' bone.", "it 's the dogs bone"),
    ("I can't, won't, DON'T, shan't", "i ca n't wo n't do n't sha n't"),
    ("we've they'd I'm you're she'll", "we 've they 'd i 'm you 're she 'll"),
    ("i'd've couldn't've", "i 'd 've could n't 've"),
    ("don't5 int' t'n't", "do n't 5 int t 'n' t"),
    ("it's5 it'sa", "it 's 5 it sa"),
  ],
)
def test_contractions_are_split_off(text, tokens):
  assert tokenize(text) == tokens.split()


@pytest.mark.parametrize(
  ("text", "tokens"),
  [
    ("Cannot gonna GOTTA wanna gimme lemme", "can not gon na got ta wan na gim me lem me"),
    ("'Tis 'twas d'ye", "'t is 't was d'ye"),
    ("cannots gonna-be cannot's", "cannots gonna-be cannot 's"),
  ],
)
def test_assimilations_come_apart(text, tokens):
  assert tokenize(text) == tokens.split()


@pytest.mark.parametrize(
  ("text", "tokens"),
  [
    ("O'Neill at o'clock on Hawai'i", "o'neill at o'clock on hawai'i"),
    ("rock 'n' roll in the '80s, 90's", "rock 'n' roll in the '80s 90 's"),
    ("ma'am y'all s'mores ol' c'mon", "ma'am y' all s'mores ol' c'mon"),
    ("jack-o'lantern jack-o'-lantern", "jack-o'lantern jack-o lantern"),
    ("ab'cd qur'an 'soft' 'no way'", "ab cd qur an soft no way"),
    ("class of '12 x", "class of '12 x"),
  ],
)
def test_apostrophes_inside_words_are_kept_by_rule(text, tokens):
  assert tokenize(text) == tokens.split()


@pytest.mark.parametrize(
  ("text", "tokens"),
  [
    ("Mr. Lee on Main St. in Calif. etc.", "mr. lee on main st. in calif. etc."),
    ("The U.S. at 5 p.m. by J. Doe", "the u.s. at 5 p.m. by j. doe"),
    ("in Mass. the mass. grew", "in mass. the mass grew"),
    ("No. 5, fig. 2; no. a fig.", "no. 5 fig. 2 no a fig"),
    ("plan B. The dog and plan C. the cat", "plan b the dog and plan c. the cat"),
    ("a bird., a cat.: no dog. an ox.", "a bird. a cat. no dog an ox"),
    ("Ave/CTH D.", "ave/cth d."),
  ],
)
def test_a_period_stays_with_abbreviations_only(text, tokens):
  assert tokenize(text) == tokens.split()


@pytest.mark.parametrize(
  ("text", "tokens"),
  [
    ("1,000 3.5 .5 -2 +7 12:44 10/25/2010", "1,000 3.5 .5 -2 +7 12:44 10/25/2010"),
    ("23 3/4 St, 1-1/2 50/50 5 1/2/3", "23 3/4 st 1-1/2 50/50 5 1/2 / 3"),
    ("on 1/2-2003 or 5-6/07", "on 1/2-2003 or 5-6/07"),
    ("5:30pm 5pm 1990s 1st 2x4 1.5m", "5:30 pm 5pm 1990s 1st 2x4 1.5 m"),
    ("$5.00 US$5 50% #1 £3 €4 7¢", "$ 5.00 us$ 5 50 % # 1 # 3 $ 4 7 cents"),
    ("½ cup, 3½ cups", "1/2 cup 3 1/2 cups"),
    ("5'6\" tall", "5 6 tall"),
    ("(555) 555-1234", "-lrb-555-rrb- 555-1234"),
  ],
)
def test_numbers_fractions_and_money(text, tokens):
  assert tokenize(text) == tokens.split()


@pytest.mark.parametrize(
  ("text", "tokens"),
  [
    ("a well-worn T-shirt, black-and white", "a well-worn t-shirt black-and white"),
    ("word - word -- word --- word a--b", "word word word word a b"),
    ("semi- x -foo ----- y", "semi x foo ----- y"),
    ("a—b–c pre\u2010war", "a b c prewar"),
    ("schoolbus/boat/house w/o w/ and/or", "schoolbus/boat/house w/o w / and/or"),
    ("AT&T, R&B, a&b, snake_case", "at&t r&b a & b snake_case"),
    ("U.S.-based", "u.s.-based"),
  ],
)
def test_hyphens_dashes_and_slashes(text, tokens):
  assert tokenize(text) == tokens.split()


@pytest.mark.parametrize(
  ("text", "tokens"),
  [
    ("\"Stop.\" ``Go'' 'Wait' “now” ‘then’", "stop go wait now then"),
    ("wait... wait . . . wait… …", "wait wait wait"),
    ("wait...5 ....10:30", "wait 5 10:30"),
    # The reference takes two curly quotes for one token, which is not on the list of punctuation.
    ("say ”“ a ’’ b", "say ''`` a b"),
    ("What?! No!! ok?? so!?", "what ?! no !! ok ?? so !?"),
    ("it’s o’clock, don’t", "it 's o’clock do n't"),
    ("(a) [b] {c}", "-lrb- a -rrb- -lsb- b -rsb- -lcb- c -rcb-"),
    ("* ** @ + = ~ ^ \\ | < >", "* ** @ + = ~ ^ \\ | < >"),
  ],
)
def test_quotes_ellipses_and_brackets(text, tokens):
  assert tokenize(text) == tokens.split()


@pytest.mark.parametrize(
  ("text", "tokens"),
  [
    ("see http://a.com/b?c=d, www.a.com.", "see http://a.com/b?c=d www.a.com"),
    ("www.5.com hello.World stop!go", "www.5.com hello.world stop!go"),
    ("mail a.b@c.co.uk or @me #tag", "mail a.b@c.co.uk or @me #tag"),
    ("foo.com readme.txt a.b.c 2.jpg C++", "foo.com readme.txt a.b.c 2.jpg c++"),
    ('<b>bold</b> <a href="x">y</a>', '<b> bold </b> <a href="x"> y </a>'),
    ("AT&amp;T &lt; 5 &quot;x&quot;", "at&t < 5 x"),
    ("x <!-- y z --> x", "x <!-- y z --> x"),
    (":) :-( :D ^_^ (--)", ":-rrb- :--lrb- :d ^_^ -lrb----rrb-"),
  ],
)
def test_addresses_markup_and_emoticons(text, tokens):
  assert tokenize(text) == tokens.split()


@pytest.mark.parametrize(
  ("text", "tokens"),
  [
    ("Café naïve Žižek ÀÉ", "café naïve žižek àé"),
    ("日本語 Русский हिन्दी", "日本語 русский हिन्दी"),
    ("a 😀 b😀c ❤️ 𝐀 x𝐀y", "a b c ❤ x y"),
    ("soft\xadhyphen a\xa0b a\u200bb", "softhyphen a b a b"),
    ("™ 5° ×", "™ 5 ° ×"),
  ],
)
def test_unicode(text, tokens):
  assert tokenize(text) == tokens.split()


@pytest.mark.parametrize("text", ["", " \n\t", "...", ". , ; : ? ! - -- ' \" `", "😀"])
def test_text_without_words_has_no_tokens(text):
  assert tokenize(text) == []


def test_line_breaks_count_as_spaces():
  assert tokenize("a dog\non  Main St.\r\nin 1999") == [
    "a",
    "dog",
    "on",
    "main",
    "st.",
    "in",
    "1999",
  ]


class Counted:
  """A rule that adds the characters that it may read to a list."""

  def __init__(self, rule: re.Pattern, read: list[int]):
    self._rule, self._read = rule, read

  def match(self, text: str, position: int = 0, end: int = sys.maxsize) -> re.Match | None:
    self._read.append(min(end, len(text)) - position)
    return self._rule.match(text, position, end)


@pytest.mark.parametrize("unit", ["~.", "a~", "<a ", "http://(", "1-", "a@(", "A&", "'", "<!--"])
def test_the_work_is_proportional_to_the_length_of_a_text(unit, monkeypatch):
  read: list[int] = []
  monkeypatch.setattr(ptb, "RULES", [Counted(rule, read) for rule in ptb.RULES])
  monkeypatch.setattr(ptb, "PLAIN_WORD", Counted(ptb.PLAIN_WORD, read))
  tokenize(text := (unit * 3000)[:3000])
  # Each rule is tried at most once at each position, and reads a bounded number of characters.
  assert 0 < len(read) <= len(text) * (len(ptb.RULES) + 1)
  assert max(read) <= 500


def test_a_token_of_usual_length_is_never_cut():
  for word in ("a" * 400, "http://a.com/" + "b" * 400, "a-" * 200 + "b", "x" * 400 + "@y.com"):
    assert tokenize(f"a {word} b") == ["a", word, "b"]
  assert "".join(tokenize("a" * 5000)) == "a" * 5000


@given(st.text())
def test_any_text_gives_words_without_spaces_or_plain_punctuation(text):
  tokens = tokenize(text)
  assert all(token and not any(map(str.isspace, token)) for token in tokens)
  assert not PUNCTUATION.intersection(tokens)


@given(
  st.lists(
    st.sampled_from(
      ["a", "dog", "Dog", "It's", "don't", "St.", "U.S.", "3/4", "1,000", "(x)", "x-ray"]
    )
  )
)
def test_only_the_position_of_spaces_matters_not_their_number(words):
  assert tokenize("  ".join(words)) == tokenize(" ".join([*words, ""]))


@given(st.text(alphabet="abcdefgh XYZ", max_size=60))
def test_plain_words_are_lower_cased_and_split_at_spaces(text):
  assert tokenize(text) == text.lower().split()
