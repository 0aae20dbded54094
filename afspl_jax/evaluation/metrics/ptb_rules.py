"""Token patterns of the Penn Treebank tokenizer, as the COCO caption evaluator runs it.

The scanner in `ptb.py` tries every rule at a position and keeps the longest match; the earlier rule
wins a tie. Lengths count the whole match. Only the group `token` is consumed: the text after it is
context that the reference's lexer compares too (it is a DFA with trailing context).

The rules were written from the Penn Treebank conventions (Marcus et al. 1993, sec. 2.2; the LDC
tokenization guide) and from the observed behaviour of Stanford's PTBTokenizer 3.4.1 on probe
lines; none of its code was used.
"""

import re

# --- Characters -------------------------------------------------------------------------------

# Letters of the reference: they include combining marks and modifier letters, which `\w` does not,
# and exclude superscripts, fractions and circled numbers, which `\w` includes.
_MARKS = (
  "\u02c2-\u02df\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u064b-\u065e\u0900-\u0963\u0966-\u0d4d"
  "\u0e31-\u0e4e"
)
_NUMERIC = "\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u209f\u2150-\u218f\u2460-\u24ff\u2776-\u2793"
_LETTER = rf"(?:[^\W\d_{_NUMERIC}]|[{_MARKS}])"
_WORD_CHAR = rf"(?:[^\W_{_NUMERIC}]|[{_MARKS}])"
_APOSTROPHE = "['\u2019]"
# Inside Hawai`i and the like, opening quotes are apostrophes too.
_LOOSE_APOSTROPHE = "['`\u2018\u2019]"
_SYMBOLS = (
  "!-/:-@[-`{-~\u00a1-\u00a9\u00ab\u00ac\u00ae-\u00b4\u00b6-\u00b9\u00bb-\u00bf\u00d7\u00f7"
  "\u2013-\u2023\u2026\u2030-\u203b\u203e-\u2042\u2044\u2070\u2074-\u207e\u2080-\u208e\u20a0\u20a4"
  "\u20ac\u2100-\u214f\u2153-\u215e\u2190-\u2bff\u3001\u3002\u3012\u30fb\uff01-\uff0f"
  "\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\uffe0-\uffe6"
)

# --- Words that are listed, because no rule finds them -----------------------------------------

# These keep their final period: "Mt.", "etc."
_ABBREVIATIONS = (
  "adj adm adv al ala alex apr ariz assn assoc asst attys? aug ave bancorp bhd bldg blvd brig "
  "bros calif capt cf cie cmdr co col colo comdr conn corp cos cpl ct dak dec dept det drs? "
  "elec ens esq est etc ext feb fla fri ft ga gen govs? hon inc ind insp intl invt jan jos jr "
  "jul jun kans? ky lieut lt ltd maj mar md messrs mfg mich minn mlle mme mon? mont mrs? ms "
  "msgr mt mtg natl neb nev nov oct okla penn pfc ph plc pptes? pptys? pres profs? ptes? ptys? "
  "pvt rd reps? rev rt sens? sept? seq sfc sgt spc sq sr st ste supts? sys tel tenn thu thurs "
  "treas tues? univ va vs vt wed wisc? wm wyo"
)
# As above, but only with a capital: "mass." ends a sentence, "Mass." is a state.
_CAPITALISED_ABBREVIATIONS = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash"
# These keep the period only before a number: "Fig. 2" but "a ripe fig."
_NUMBERED_ABBREVIATIONS = "art ca figs? nos? op pp prop"
# These end a file name even after a digit, where a word cannot continue: "2.jpg", "Python 3.x".
_FILE_ENDINGS = (
  "bat bmp c cgi class cpp dll docx? exe gif gz h html? jar java jpe?g mov mp3 pdf php pl png "
  "ppt ps py sql tar txt wav x xml zip"
)
# A single initial before one of these ends a sentence ("plan B. The dog") and loses its period.
_SENTENCE_STARTERS = (
  "A About According Additionally After An As At But Earlier He Her Here However If In It Last "
  r"Many More Mr\. Ms\. Now Once One Other Our She Since So Some Such That The Their Then There "
  "These They This We What When While Yet You"
)


def _any_of(words: str, capital: bool = False) -> str:
  """An alternation of the words, in any case; with `capital` the first letter must be one."""
  if not capital:
    return f"(?i:{'|'.join(words.split())})"
  return f"(?:{'|'.join(f'{word[0]}(?i:{word[1:]})' for word in words.split())})"


# --- Parts of patterns --------------------------------------------------------------------------

_WORD = rf"{_LETTER}{_WORD_CHAR}*(?:[.!?]{_LETTER}{_WORD_CHAR}*)*"
_ACRONYM = r"[A-Za-z](?:\.[A-Za-z])+"
_NUMBER = r"(?:[0-9]*(?:[.:,][0-9]+)+|[0-9]+)"
_FRACTION = r"[0-9]{1,4}\\?/[0-9]{1,4}"
# A straight apostrophe is a clitic's only at the end of a word ("'s" but not "'soft"). The
# reference does not look behind a curly one: it reads "\u2019dog" as "'d" and "og".
_CLITIC = r"(?:'(?i:s|m|d|re|ve|ll)(?![A-Za-z])|\u2019(?i:s|m|d|re|ve|ll))"
_ABBREVIATION = (
  f"(?:{_any_of(_ABBREVIATIONS)}|{_any_of(_CAPITALISED_ABBREVIATIONS, capital=True)}"
  rf"|(?i:(?:ph|ed)\.d))\."
)
# The parts of a compound: "jack-o'lantern", "t-shirt", "snake_case"; then those that begin with
# punctuated ASCII, "U.S.-based", "a-U.S.".
_PART = rf"(?:[dDoOlL]{_APOSTROPHE}(?={_LETTER}{{2}}))?{_WORD_CHAR}+"
_COMPOUND = rf"{_PART}(?:[-_]{_PART})*"
_DOTTED_COMPOUND = rf"[A-Za-z0-9][A-Za-z0-9.,]*(?:-(?:{_ACRONYM}\.|[A-Za-z0-9]+))+"
_SLASH_PART = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
# Words whose apostrophe is a letter of the word, not a quote or a clitic.
_APOSTROPHE_WORD = "|".join(
  (
    rf"[dDoOlL]{_APOSTROPHE}{_WORD_CHAR}+",  # d'Artagnan, o'clock, L'Oreal
    rf"[A-HJ-XZn]{_LOOSE_APOSTROPHE}{_LETTER}{{2,}}",  # O'Neill, K'nex
    rf"{_LETTER}+(?i:[aeiouy]){_LOOSE_APOSTROPHE}[aeiouA-Z]{_LETTER}*",  # Hawai'i, Xi'an
    rf"(?i:somethin|dunkin|ol|[ldj]){_APOSTROPHE}",
    rf"(?:'(?i:n)(?:{_APOSTROPHE}|(?![A-Za-z]))|\u2019(?i:n){_APOSTROPHE}?)",
    rf"{_APOSTROPHE}(?i:em|till?|cause|[2-9]0s|[0-9]{{2}}(?=\s|$))",
    r"(?i:cont'd\.|nor'easter|c'mon|cap'n|e'er|s'mores|ev'ry|li'l|nat'l)",
  )
)
_NAME = r"[A-Za-z][A-Za-z0-9_:.-]*"

# --- The rules, in order of precedence ---------------------------------------------------------

_PATTERNS = (
  # Assimilations come apart: can|not, gon|na, 't|is.
  r"(?P<token>(?i:can))(?i:not)",
  r"(?P<token>(?i:gon|wan))(?i:na)",
  r"(?P<token>(?i:got))(?i:ta)",
  r"(?P<token>(?i:gim|lem))(?i:me)",
  r"(?P<token>'(?i:t))(?i:is|was)",
  # Markup: <b>, </b>, <a href="x">, <!-- x -->.
  rf"<[!?]?{_NAME}(?:\s+{_NAME}(?:\s*=\s*(?:\"[^\"]*\"|'[^']*'))?)*\s*[/?]?>",
  rf"</{_NAME}\s*>",
  r"<!--.*?-->",
  # Contractions: the stem first, the clitic at its own position.
  rf"(?P<token>[A-Za-z]*(?i:[a-mo-z]))(?i:n{_APOSTROPHE}t)",
  rf"(?P<token>{_WORD}){_CLITIC}",
  rf"{_CLITIC}",
  rf"(?i:n{_APOSTROPHE}t)",
  # Addresses.
  r"(?i:https?://)[^\s\"<>|(){}]+[^\s\"<>|(){}.,?!-]",
  r"(?i:www\.)(?:[^\s\"`'<>|.!?(){},-]+\.)+[A-Za-z]{2,4}(?:/[^\s\"<>|()]*[^\s\"<>|()./,?!])?",
  rf"(?:(?:{_LETTER}|~)(?:{_WORD_CHAR}|~)*\.)+(?i:com|net|org|edu)"
  r"(?:/[^\s\"<>|()]+[^\s\"<>|().,?!:;-])?",
  r"<?[A-Za-z0-9][^\s\"<>|(){}]*@(?:[^\s\"<>|(){}.]+\.)*[^\s\"<>|(){}.]+>?",
  rf"@[A-Za-z_][A-Za-z0-9_]*|\#{_LETTER}+",
  rf"{_WORD_CHAR}+(?:\.{_WORD_CHAR}+)*\.{_any_of(_FILE_ENDINGS)}(?=[\s,]|$)",
  # Numbers.
  rf"[-+]?{_NUMBER}",
  rf"(?:[0-9]{{1,4}}[-\s])?{_FRACTION}",
  r"[0-9]{1,2}[-/][0-9]{1,2}[-/][0-9]{2,4}",
  r"\([0-9]{2,3}\)\s?[0-9]{3,4}[-\s]?[0-9]{3,5}",
  r"[A-Z]+\$",
  # Words.
  _WORD,
  r"(?i:c\+\+|[cf]\#)",
  _APOSTROPHE_WORD,
  rf"(?P<token>(?i:y){_APOSTROPHE})(?=[^\W\d_])",
  r"[A-Z]+(?:(?:&amp;|[&+])[A-Z]+)+",
  rf"{_SLASH_PART}(?:\\?/{_SLASH_PART}){{1,2}}",
  _COMPOUND,
  _DOTTED_COMPOUND,
  # Abbreviations.
  rf"(?P<token>[A-Za-z])\.\s+{_any_of(_SENTENCE_STARTERS, capital=True)}(?=\s|$)",
  r"[A-Za-z]\.",
  rf"{_ACRONYM}\.?",
  _ABBREVIATION,
  rf"(?P<token>{_any_of(_NUMBERED_ABBREVIATIONS)}\.)\s?[0-9]",
  rf"(?P<token>(?:{_WORD}|{_COMPOUND}|{_DOTTED_COMPOUND})\.)[,;:]",
  # Emoticons, which also hide brackets from the bracket rule.
  r"[<>]?[:;=][-'o*]?[()@DOP\[\]dp{|\\](?![0-9A-Za-z])",
  r"[-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\)",
  # Character entities.
  r"&(?i:amp|lt|gt|quot|apos|nbsp|mdash|ndash);|&#[0-9]+;",
  # Runs and single marks. The reference drops characters without a rule (emoji, controls) too.
  r"\.{3,4}|\.(?: \.){2}",
  r"-+|[!?]+|\*+|_+|@+|\#+|''|``|<<|>>|(?:\\\*){1,3}",
  "[`\u2018\u2019\u201c\u201d]{1,2}",
  f"[{_SYMBOLS}]",
)

RULES = tuple(
  re.compile(pattern if "?P<token>" in pattern else f"(?P<token>{pattern})")
  for pattern in _PATTERNS
)

# Most of a caption: words that no rule above can split or extend. Matching them first makes the
# tokenizer several times faster and changes no token.
PLAIN_WORD = re.compile(r"(?!(?i:cannot|gonna|wanna|gotta|gimme|lemme)\b)[A-Za-z]+(?=,?(?:\s|$))")
