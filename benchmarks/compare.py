"""Times of sides that take turns, and the ratios between them."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.process import Child

OURS = "afspl_jax"


class Spread(NamedTuple):
  """Of repeated measurements."""

  median: float
  low: float
  high: float


class Measured(NamedTuple):
  """One kind of work, done by several sides in turn."""

  seconds: dict[str, list[float]]  # by side, one a turn
  values: dict[str, Any]  # what each side gave the last time
  peaks: dict[str, int]  # bytes

  def time(self, side: str) -> Spread:
    """Seconds of a side."""
    return spread(self.seconds[side])

  def ratio(self, side: str) -> Spread:
    """How many times as long as ours a side takes; each turn is compared with its neighbour."""
    pairs = zip(self.seconds[side], self.seconds[OURS], strict=True)
    return spread([theirs / ours for theirs, ours in pairs])


def spread(values: Sequence[float]) -> Spread:
  """Median and extremes."""
  return Spread(statistics.median(values), min(values), max(values))


def in_turn(
  sides: Mapping[str, Child], turns: int, method: str, *args: Any, warm: bool = True
) -> Measured:
  """Lets every side do the same `turns` times, one after the other: all meet the same noise.

  Args:
    sides: by name; ours is `OURS`.
    turns: repetitions that count.
    method: of the sides.
    args: its arguments.
    warm: does it once before, so that nothing is compiled or drawn from disk where it counts.
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
