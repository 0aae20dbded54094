"""Scores of answers to visual questions: the accuracy of VQAv2, and exact match.

VQAv2's accuracy is for questions with several human answers (Antol et al. 2015, sec. 3; app. for
the normalisation; GT-Vision-Lab/VQA `vqaEval.py`, the official evaluation). For a question with one
answer its formula gives 0 whatever the model says: such questions have exact match instead.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

_AGREEING_HUMANS = 3  # this many make an answer fully correct
_FEWEST_ANSWERS = 2  # to leave one out
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_GROUPS = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_FULL_STOPS = int(re.UNICODE)  # that many are removed: the evaluation passes the flag as a count
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
class AnswerScores:
  """Scores of a set of answers, between 0 and 1."""

  mean: float
  items: Float64[np.ndarray, " items"]


def normalise(answer: str) -> str:
  """Normalises an answer as VQAv2 does: "The two dogs." gives "2 dogs".

  Args:
    answer: the answer of a model or a human.

  Returns:
    The answer in lower case without punctuation and articles, numbers to ten as digits,
    contractions with their apostrophes.
  """
  text = _strip(answer)
  # A mark beside a space is removed, and a mark between words becomes a space. If the answer has
  # digit groups ("1,000"), every mark is removed.
  grouped = _DIGIT_GROUPS.search(text) is not None
  result = text
  for mark in _PUNCTUATION:
    removed = grouped or f"{mark} " in text or f" {mark}" in text
    result = result.replace(mark, "" if removed else " ")
  result = _FULL_STOP.sub("", result, count=_FULL_STOPS)
  words = [_NUMBERS.get(word, word) for word in result.lower().split()]
  return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> AnswerScores:
  """Scores answers to questions with several human answers, as the official evaluation does.

  If the human answers to a question differ, they and the prediction are normalised. If they are all
  equal, the prediction must equal them as they are.

  Args:
    predictions: one answer for each question.
    answers: the human answers to each question, at least two. The score of a prediction is
      min(matches / 3, 1), averaged over leaving out each human. VQAv2 has ten answers; of fewer,
      four must be equal for a score of 1.

  Returns:
    The mean accuracy and that of each item.

  Raises:
    ValueError: there is nothing to score, the lengths differ, or a question has fewer than two
      answers.
  """
  _check_lengths(predictions, answers)
  for index, group in enumerate(answers):
    if isinstance(group, str) or len(group) < _FEWEST_ANSWERS:
      raise ValueError(
        f"answers[{index}]: expected a list of at least two answers; got {group!r}. Score questions"
        " with one answer by exact match."
      )
  return _mean([_accuracy(p, group) for p, group in zip(predictions, answers, strict=True)])


def exact_match(predictions: Sequence[str], answers: Sequence[str]) -> AnswerScores:
  """Scores answers to questions with one answer: 1 if they are equal after normalisation, else 0.

  Args:
    predictions: one answer for each question.
    answers: the correct answer to each question.

  Returns:
    The share of correct predictions, and the score of each item.

  Raises:
    ValueError: there is nothing to score, or the lengths differ.
  """
  _check_lengths(predictions, answers)
  pairs = zip(predictions, answers, strict=True)
  return _mean([float(normalise(p) == normalise(answer)) for p, answer in pairs])


def score_answers(
  predictions: Sequence[str], answers: Sequence[Sequence[str]]
) -> dict[str, tuple[list[int], AnswerScores]]:
  """Scores each prediction by the metric for its question, which depends on its answers.

  Args:
    predictions: one answer for each question.
    answers: the correct answers to each question.

  Returns:
    `vqa_accuracy` of the questions with several answers, and `exact_match` of those with one: the
    indices of the questions, and their scores. A metric without questions is absent.

  Raises:
    ValueError: a question has no answer.
  """
  single = [i for i, group in enumerate(answers) if len(group) == 1]
  several = [i for i, group in enumerate(answers) if len(group) != 1]
  out = {}
  if several:
    scores = vqa_accuracy([predictions[i] for i in several], [answers[i] for i in several])
    out["vqa_accuracy"] = several, scores
  if single:
    scores = exact_match([predictions[i] for i in single], [answers[i][0] for i in single])
    out["exact_match"] = single, scores
  return out


def _strip(answer: str) -> str:
  return answer.replace("\n", " ").replace("\t", " ").strip()


def _accuracy(prediction: str, answers: Sequence[str]) -> float:
  """The soft score of one prediction (Antol et al. 2015, sec. 3)."""
  prediction, *humans = map(_strip, (prediction, *answers))
  if len(set(humans)) > 1:
    prediction, *humans = map(normalise, (prediction, *humans))
  matches = [human == prediction for human in humans]
  # Each human is left out in turn, so that humans can be scored on the same scale.
  left = [sum(matches) - match for match in matches]
  return sum(min(n / _AGREEING_HUMANS, 1.0) for n in left) / len(left)


def _check_lengths(predictions: Sequence[str], answers: Sequence[object]) -> None:
  if not predictions:
    raise ValueError("Expected at least one prediction to score; got none.")
  if len(predictions) != len(answers):
    raise ValueError(
      f"Expected the answers to each prediction; got {len(predictions)} predictions and "
      f"{len(answers)} lists. Pass them in the same order, one list for each."
    )


def _mean(scores: Sequence[float]) -> AnswerScores:
  items = np.array(scores)
  return AnswerScores(mean=float(items.mean()), items=items)
