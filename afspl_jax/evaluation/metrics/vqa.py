"""Accuracy of answers to visual questions by the rule of VQAv2.

Antol et al. 2015, sec. 3 (accuracy) and app. (normalisation); GT-Vision-Lab/VQA `vqaEval.py`, the
official evaluation.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

_AGREEING_HUMANS = 3  # this many make an answer fully correct
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_GROUPS = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_ARTICLES = frozenset(["a", "an", "the"])
_NUMBERS = {
  "none": "0",
  "zero": "0",
  "one": "1",
  "two": "2",
  "three": "3",
  "four": "4",
  "five": "5",
  "six": "6",
  "seven": "7",
  "eight": "8",
  "nine": "9",
  "ten": "10",
}
# If one of their apostrophes is missing ("dont", "couldnt've"), it is restored. The evaluation has
# no others: "its" and "well" are words themselves, and stay.
_CONTRACTED = """
  ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
  haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
  might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
  shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
  someone's something'd something'd've something'll that's there'd there'd've there're there's
  they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
  what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
  why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
  you've
"""
_CONTRACTIONS = {
  word[:index] + word[index + 1 :]: word
  for word in _CONTRACTED.split()
  for index, character in enumerate(word)
  if character == "'"
} | {"somebody'd": "somebodyd"}  # the evaluation has it the wrong way round, too


@dataclasses.dataclass(frozen=True)
class VqaScores:
  """Accuracy of a set of answers, between 0 and 1."""

  accuracy: float  # the mean over items
  items: Float64[np.ndarray, " items"]


def normalise(answer: str) -> str:
  """Normalises an answer as VQAv2 does: "The two dogs." gives "2 dogs".

  Args:
    answer: the answer of a model or a human.

  Returns:
    The answer in lower case without punctuation and articles, numbers to ten as digits,
    contractions with their apostrophes.
  """
  text = answer.replace("\n", " ").replace("\t", " ").strip()
  # A mark beside a space is removed, and a mark between words becomes a space. If the answer has
  # digit groups ("1,000"), every mark is removed.
  grouped = _DIGIT_GROUPS.search(text) is not None
  result = text
  for mark in _PUNCTUATION:
    removed = grouped or f"{mark} " in text or f" {mark}" in text
    result = result.replace(mark, "" if removed else " ")
  words = [_NUMBERS.get(word, word) for word in _FULL_STOP.sub("", result).lower().split()]
  return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _accuracy(prediction: str, answers: Sequence[str]) -> float:
  """The soft score of one prediction (Antol et al. 2015, sec. 3)."""
  matches = [normalise(answer) == normalise(prediction) for answer in answers]
  if len(matches) == 1:
    return float(matches[0])
  # Each human is left out in turn, so that humans can be scored on the same scale.
  left = [sum(matches) - match for match in matches]
  return sum(min(n / _AGREEING_HUMANS, 1.0) for n in left) / len(left)


def vqa_accuracy(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> VqaScores:
  """Scores answers to visual questions.

  Predictions and answers are normalised. VQAv2 releases normalised answers, so for them the numbers
  are the official ones.

  Args:
    predictions: one answer for each question.
    answers: the human answers to each question. With one answer, a prediction is correct (1) or
      wrong (0). With VQAv2's ten, its score is min(matches / 3, 1), averaged over leaving out each
      human. Other numbers use the same formula; a score of 1 then needs four equal answers.

  Returns:
    The mean accuracy and that of each item.

  Raises:
    ValueError: there is nothing to score, the lengths differ, or a question has no answer.
  """
  if not predictions:
    raise ValueError("Expected at least one prediction to score; got none.")
  if len(predictions) != len(answers):
    raise ValueError(
      f"Expected one list of answers per prediction; got {len(predictions)} predictions and "
      f"{len(answers)} lists. Pass them in the same order, one list for each."
    )
  for index, group in enumerate(answers):
    if isinstance(group, str) or not group:
      raise ValueError(
        f"answers[{index}]: expected a non-empty list of strings; got {group!r}. "
        "Drop the question, or give at least one answer in a list."
      )
  items = np.array([_accuracy(p, group) for p, group in zip(predictions, answers, strict=True)])
  return VqaScores(accuracy=float(items.mean()), items=items)


def exact_match(predictions: Sequence[str], answers: Sequence[str]) -> float:
  """The fraction of predictions that equal their one answer after normalisation.

  Args:
    predictions: one answer for each question.
    answers: the correct answer to each question.

  Raises:
    ValueError: there is nothing to score, or the lengths differ.
  """
  return vqa_accuracy(predictions, [[answer] for answer in answers]).accuracy
