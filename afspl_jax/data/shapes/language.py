"""Texts about a scene: captions in the style of a site, questions and their answers.

Spaces separate words from punctuation, so that every word is one token.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from afspl_jax.data.shapes.scene import COLOURS, SHAPES, Scene, Thing

# Each entry has the same meanings in other words; a style chooses one of each.
COLOUR_WORDS = (
  dict(zip(COLOURS, COLOURS, strict=True)),
  dict(
    zip(
      COLOURS,
      ("crimson", "emerald", "azure", "golden", "amber", "violet", "rose", "teal"),
      strict=True,
    )
  ),
)
SHAPE_WORDS = (
  dict(zip(SHAPES, SHAPES, strict=True)),
  dict(zip(SHAPES, ("disc", "box", "wedge", "asterisk", "plus", "hoop"), strict=True)),
)
SIZE_WORDS = (
  {"small": "small", "big": "big"},
  {"small": "little", "big": "large"},
  {"small": "tiny", "big": "huge"},
)
_PLAIN_ROWS = ("at the top", "in the middle", "at the bottom")
PLACE_WORDS = (
  tuple(
    ("in the centre" if row == 1 and column == 1 else f"on the {('left', '', 'right')[column]}")
    if row == 1
    else f"{_PLAIN_ROWS[row]} {('left', '', 'right')[column]}".strip()
    for row in range(3)
    for column in range(3)
  ),
  tuple(
    " ".join(
      word
      for word in (
        "in the",
        ("upper", "central", "lower")[row],
        ("left", "", "right")[column],
        "field",
      )
      if word
    )
    for row in range(3)
    for column in range(3)
  ),
  (
    "north west",
    "north",
    "north east",
    "west",
    "midpoint",
    "east",
    "south west",
    "south",
    "south east",
  ),
)
NUMBER_WORDS = ("zero", "one", "two", "three")
FORMS = ("sentence", "note", "report", "place_first", "relation", "tally")
OPENERS = ("there is", "i see", "we see", "the picture shows", "here we have")
CAPTION_INSTRUCTIONS = (
  "describe the picture .",
  "write a caption .",
  "what does the picture show ?",
  "report what you see .",
)


@dataclass(frozen=True)
class Style:
  """The writing style of a site: vocabulary, sentence form, order and level of detail."""

  form: str
  colours: int = 0  # index into COLOUR_WORDS
  shapes: int = 0  # index into SHAPE_WORDS
  sizes: int = 0  # index into SIZE_WORDS
  places: int = 0  # index into PLACE_WORDS
  reverse: bool = False  # the last thing in reading order comes first
  name_sizes: bool = True  # False: sizes go unmentioned


@dataclass(frozen=True)
class QuestionAnswer:
  """A question with its kind and its one right answer."""

  kind: str
  text: str
  answer: str


def sample_style(rng: np.random.Generator) -> Style:
  """Draws a random style."""
  return Style(
    form=FORMS[rng.integers(len(FORMS))],
    colours=int(rng.integers(len(COLOUR_WORDS))),
    shapes=int(rng.integers(len(SHAPE_WORDS))),
    sizes=int(rng.integers(len(SIZE_WORDS))),
    places=int(rng.integers(len(PLACE_WORDS))),
    reverse=bool(rng.integers(2)),
    name_sizes=bool(rng.random() < 0.8),
  )


def caption(scene: Scene, style: Style, rng: np.random.Generator) -> str:
  """One caption of `scene`; `rng` chooses among the paraphrases that `style` leaves open."""
  return _articles(_caption(scene, style, rng))


def _caption(scene: Scene, style: Style, rng: np.random.Generator) -> str:
  things = list(reversed(scene.things)) if style.reverse else list(scene.things)
  phrases = [noun_phrase(thing, style) for thing in things]
  places = [place_phrase(thing, style) for thing in things]
  number = NUMBER_WORDS[len(things)]
  plural = "" if len(things) == 1 else "s"
  pick = lambda *options: options[rng.integers(len(options))]  # noqa: E731
  if style.form == "sentence":
    parts = [f"a {phrase} {place}" for phrase, place in zip(phrases, places, strict=True)]
    return f"{pick(*OPENERS)} {_join(parts, pick(' and ', ' , ', ' with '), ' and ')} ."
  if style.form == "note":
    parts = [f"{phrase} {place}" for phrase, place in zip(phrases, places, strict=True)]
    return pick(" , ", " ; ", " and ").join(parts)
  if style.form == "report":
    parts = [f"{pick('one', 'a')} {p} , {q} ." for p, q in zip(phrases, places, strict=True)]
    noun = pick("object", "finding", "item") + plural
    return f"findings : {' '.join(parts)} {pick('impression', 'summary')} : {number} {noun} ."
  if style.form == "place_first":
    link = pick("is", "there is", "we find", "lies")
    parts = [f"{place} {link} a {phrase}" for phrase, place in zip(phrases, places, strict=True)]
    return _join(parts, " , ", pick(" and ", " , ")) + " ."
  if style.form == "tally":
    noun = pick("object", "thing", "item") + plural
    parts = [f"{phrase} ( {place} )" for phrase, place in zip(phrases, places, strict=True)]
    return f"{pick('a total of', 'exactly', 'just')} {number} {noun} : {' , '.join(parts)} ."
  if len(things) == 1:
    return f"{pick('only', 'just')} a {phrases[0]} {places[0]} ."
  parts = [
    f"{pick('the', 'a')} {phrases[i]} is {relation(things[i], things[i + 1])}"
    f" {pick('the', 'a')} {phrases[i + 1]}"
    for i in range(len(things) - 1)
  ]
  return pick(" and ", " , ", " while ").join(parts) + " ."


def captions(scene: Scene, style: Style, rng: np.random.Generator, number: int = 5) -> list[str]:
  """`number` paraphrases in one style."""
  return [caption(scene, style, rng) for _ in range(number)]


def noun_phrase(thing: Thing, style: Style) -> str:
  """`small red star` in the words of `style`."""
  words = [COLOUR_WORDS[style.colours][thing.colour], SHAPE_WORDS[style.shapes][thing.shape]]
  if style.name_sizes:
    words.insert(0, SIZE_WORDS[style.sizes][thing.size])
  return " ".join(words)


def place_phrase(thing: Thing, style: Style) -> str:
  """`at the top left` in the words of `style`."""
  return PLACE_WORDS[style.places][3 * thing.row + thing.column]


def relation(one: Thing, other: Thing) -> str:
  """The position of `one` relative to `other`; rows take precedence over columns."""
  if one.row != other.row:
    return "above" if one.row < other.row else "below"
  return "left of" if one.column < other.column else "right of"


def questions(scene: Scene, style: Style, rng: np.random.Generator) -> list[QuestionAnswer]:
  """One question of each kind that has a unique answer in `scene`, in random order."""
  colours, shapes = COLOUR_WORDS[style.colours], SHAPE_WORDS[style.shapes]
  things = scene.things
  out = [QuestionAnswer("count", "how many objects are there ?", NUMBER_WORDS[len(things)])]
  one = things[rng.integers(len(things))]
  if _unique(things, "shape", one):
    name = shapes[one.shape]
    out += [
      QuestionAnswer("colour", f"what colour is the {name} ?", colours[one.colour]),
      QuestionAnswer("size", f"what size is the {name} ?", SIZE_WORDS[style.sizes][one.size]),
      QuestionAnswer("where", f"where is the {name} ?", place_phrase(one, style)),
    ]
  if _unique(things, "colour", one):
    out.append(QuestionAnswer("shape", f"what shape is {colours[one.colour]} ?", shapes[one.shape]))
  out.append(_exists(things, colours, shapes, rng))
  if len(things) > 1:
    a, b = (things[i] for i in rng.choice(len(things), size=2, replace=False))
    if _unique(things, "shape", a) and _unique(things, "shape", b):
      side = ("above", "below", "left of", "right of")[rng.integers(4)]
      text = f"is the {shapes[a.shape]} {side} the {shapes[b.shape]} ?"
      out.append(QuestionAnswer("relation", text, "yes" if _holds(a, b, side) else "no"))
  return [out[i] for i in rng.permutation(len(out))]


def _exists(things, colours, shapes, rng) -> QuestionAnswer:
  """Half of the answers are yes; the others ask for a thing in a random colour."""
  thing = things[rng.integers(len(things))]
  colour, shape, answer = thing.colour, thing.shape, "yes"
  if rng.random() < 0.5:
    colour = list(COLOURS)[rng.integers(len(COLOURS))]
    answer = "yes" if any(t.colour == colour and t.shape == shape for t in things) else "no"
  text = _articles(f"is there a {colours[colour]} {shapes[shape]} ?")
  return QuestionAnswer("exists", text, answer)


def _holds(a: Thing, b: Thing, side: str) -> bool:
  return {
    "above": a.row < b.row,
    "below": a.row > b.row,
    "left of": a.column < b.column,
    "right of": a.column > b.column,
  }[side]


def _articles(text: str) -> str:
  return re.sub(r"\ba (?=[aeio])", "an ", text)


def _unique(things: Sequence[Thing], attribute: str, one: Thing) -> bool:
  return sum(getattr(t, attribute) == getattr(one, attribute) for t in things) == 1


def _join(parts: Sequence[str], separator: str, last: str) -> str:
  return parts[0] if len(parts) == 1 else separator.join(parts[:-1]) + last + parts[-1]
