"""Measures sides in alternation, and computes ratios of their times."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.process import Child

OURS = "afspl_jax"


class Spread(NamedTuple):
  """The spread of repeated measurements."""

  median: float
  low: float
  high: float


class Measured(NamedTuple):
  """Measurements of one kind of work by several sides."""

  seconds: dict[str, list[float]]  # by side, one per turn
  values: dict[str, Any]  # by side: the result of the last turn
  peaks: dict[str, int]  # bytes

  def time(self, side: str) -> Spread:
    """Returns the seconds of a side."""
    return spread(self.seconds[side])

  def ratio(self, side: str) -> Spread:
    """Returns a side's time divided by ours, turn by turn."""
    pairs = zip(self.seconds[side], self.seconds[OURS], strict=True)
    return spread([theirs / ours for theirs, ours in pairs])


def spread(values: Sequence[float]) -> Spread:
  """Returns median and extremes."""
  return Spread(statistics.median(values), min(values), max(values))


def in_turn(
  sides: Mapping[str, Child], turns: int, method: str, *args: Any, warm: bool = True
) -> Measured:
  """Measures every side `turns` times, in alternation, so that noise affects all alike.

  Args:
    sides: by name; ours is `OURS`.
    turns: measured repetitions.
    method: the method of the sides to call.
    args: its arguments.
    warm: call it once before, so that compiling and reading from disk are not measured.
  """
  seconds: dict[str, list[float]] = {name: [] for name in sides}
  values, peaks = {}, {}
  for turn in range(-1 if warm else 0, turns):
    order = list(sides.items())
    for name, child in order if turn % 2 else reversed(order):
      timed = child(method, *args)
      values[name], peaks[name] = timed.value, timed.peak
      if turn >= 0:
        seconds[name].append(timed.seconds)
  return Measured(seconds, values, peaks)
