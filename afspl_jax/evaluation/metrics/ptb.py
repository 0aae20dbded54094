"""Penn Treebank tokenizer for caption metrics: the tokens of COCO's evaluator, without Java.

Reproduces Stanford's PTBTokenizer 3.4.1 with `-preserveLines -lowerCase`, followed by the
evaluator's removal of punctuation (Chen et al. 2015, sec. 3.1; pycocoevalcap
`tokenizer/ptbtokenizer.py`). One difference is deliberate: there all captions are one text, so a
final initial ("12th Ave S.") loses its period when the *next* caption happens to begin with "A" or
"The". Here the tokens of a caption depend only on that caption, as if an empty line followed it.
"""

import functools
import re

from afspl_jax.evaluation.metrics.ptb_rules import PLAIN_WORD, RULES

# Characters of a token with its context. Some rules read to the end of a line and then fail, at
# every position of it ("~.~.~." might still become a domain name). With a bound, the time is
# proportional to the length of the text; tokens differ only where one is longer.
_REACH = 500

# Letters of a text whose tokens are kept for the next call. The views of a run are scored against
# the same references: together with ngrams.py, scoring 697 captions takes 0.17 instead of 0.47 s.
_KEPT = 400

# The evaluator's list also has -LRB-, -RRB-, -LCB- and -RCB-, but it compares after lower-casing,
# so brackets stay in its captions as "-lrb-". For equal scores they stay here too.
_REMOVED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

# Maps look-alikes in Windows-1252 and Unicode to one character; hyphens that only mark a possible
# line break are removed.
_LOOK_ALIKES = str.maketrans(
  dict.fromkeys("\x91\u2039\u201b", "‘")
  | dict.fromkeys("\x92\u203a", "’")
  | dict.fromkeys("\x93«", "“")
  | dict.fromkeys("\x94»", "”")
  | dict.fromkeys("\x85", "…")
  | dict.fromkeys("\x96\x97–―", "—")
  | dict.fromkeys("\x80¤₠", "€")
  | dict.fromkeys("\xad\u058a\u2010\u2011")
)
_QUOTES = str.maketrans({"‘": "`", "’": "'", "“": "``", "”": "''"})
_CLITICS = frozenset(["'s", "'m", "'d", "'re", "'ve", "'ll", "n't"])
_OUTSIDE_BMP = re.compile("[\U00010000-\U0010ffff]")
_WHOLE_TOKENS = {
  '"': "''",
  "…": "...",
  "....": "...",
  ". . .": "...",
  "—": "--",
  "[": "-lsb-",
  "]": "-rsb-",
  "{": "-lcb-",
  "}": "-rcb-",
  "€": "$",
  "£": "#",
  "¢": "cents",
  "¼": "1/4",
  "½": "1/2",
  "¾": "3/4",
  "⅓": "1/3",
  "⅔": "2/3",
  "&amp;": "&",
  "&lt;": "<",
  "&gt;": ">",
  "&quot;": "''",
  "&apos;": "'",
  "&nbsp;": "",
  "&mdash;": "--",
  "&ndash;": "--",
}


def _scan(text: str) -> list[str]:
  """Cuts a line into Treebank tokens, longest match first."""
  tokens = []
  position = 0
  while position < len(text):
    reach = position + _REACH
    if text[position].isspace():
      position += 1
    elif plain := PLAIN_WORD.match(text, position, reach):
      tokens.append(plain[0])
      position = plain.end()
    else:
      matches = [match for rule in RULES if (match := rule.match(text, position, reach))]
      if matches:
        longest = max(matches, key=re.Match.end)
        tokens.append(longest["token"])
        position = longest.end("token")
      else:
        position += 1
  return tokens


def _spell(token: str) -> str:
  """Writes a lower-case token as the reference prints it."""
  straight = token.translate(_QUOTES)
  # Curly apostrophes stay inside words ("o’clock") but not in clitics ("it" + "'s").
  if straight in _CLITICS or not straight.strip("'`"):
    return straight
  if not token.strip("-") and 2 <= len(token) <= 4:
    return "--"
  token = _WHOLE_TOKENS.get(token, token)
  if token.startswith("<"):
    return token
  return token.replace("(", "-lrb-").replace(")", "-rrb-").replace("&amp;", "&")


def tokenize(text: str) -> list[str]:
  """Tokens of one caption, lower-cased and without punctuation, as COCO's metrics count them.

  Args:
    text: a caption or report; line breaks count as spaces.

  Returns:
    The tokens, in order: "it's" gives "it" and "'s", "(" gives "-lrb-", "half." gives "half".
  """
  return list(_kept_tokens(text) if len(text) <= _KEPT else _tokens(text))


def _tokens(text: str) -> tuple[str, ...]:
  line = _OUTSIDE_BMP.sub(" ", text.translate(_LOOK_ALIKES))
  tokens = [_spell(token.lower()) for token in _scan(line)]
  # A fraction such as "23 3/4" is one Treebank token but, for the metrics, two words.
  return tuple(" ".join(token for token in tokens if token not in _REMOVED).split())


_kept_tokens = functools.lru_cache(maxsize=2**14)(_tokens)
