"""Counts of n-grams, which BLEU and CIDEr both need."""

import functools
from collections import Counter
from collections.abc import Sequence

Ngram = tuple[str, ...]
MAX_N = 4
_KEPT = 40  # tokens of a caption whose counts are kept for the next call, see ptb.py


def count_ngrams(tokens: Sequence[str], max_n: int = MAX_N) -> list[Counter[Ngram]]:
  """Counts the n-grams of one caption, for every n up to `max_n`.

  Args:
    tokens: The caption's tokens.
    max_n: The longest n-gram to count.

  Returns:
    `max_n` counters; the one at index k counts the (k + 1)-grams. A counter is empty where the
    caption is too short. They must not be changed: another call may get the same ones.
  """
  return (_kept_counts if len(tokens) <= _KEPT else _counts)(tuple(tokens), max_n)


def _counts(tokens: tuple[str, ...], max_n: int) -> list[Counter[Ngram]]:
  return [
    Counter(zip(*(tokens[start:] for start in range(n)), strict=False)) for n in range(1, max_n + 1)
  ]


_kept_counts = functools.lru_cache(maxsize=2**13)(_counts)
