"""Sides work in their own processes."""

import pytest

from benchmarks.compare import OURS, in_turn, spread
from benchmarks.process import Child, ChildError

COUNTER = "tests.benchmarks.targets:Counter"


def test_a_child_keeps_its_object_and_reports_the_cost_of_a_call():
  with Child(COUNTER, 5, environment={"AFSPL_TEST": "yes"}) as child:
    assert [child("add", n).value for n in (1, 2)] == [6, 8]
    assert child("environment", "AFSPL_TEST").value == "yes"
    before = child("add", 0).peak
    grown = child("grow", 300 << 20)
    assert 0 < grown.seconds < 60
    assert grown.peak - before > 250 << 20
    with pytest.raises(ChildError, match="ValueError: no such thing"):
      child("fail")
    assert child("add", 0).value == 8  # a failed call did not change it
    with pytest.raises(ChildError, match="die: its process ended with 7"):
      child("die")


def test_the_result_of_a_function_is_available_at_once():
  with Child("tests.benchmarks.targets:double", 21) as child:
    assert child.built.value == 42
  with pytest.raises(ChildError, match="has no attribute 'missing'"):
    Child("tests.benchmarks.targets:missing")


class Recorded:
  """A side that records its calls and reports the given times."""

  def __init__(self, name, seconds, order):
    self.name, self.seconds, self.order = name, iter(seconds), order

  def __call__(self, method, *args):
    from benchmarks.process import Timed

    self.order.append(self.name)
    return Timed((method, args), next(self.seconds), 1)


def test_sides_take_turns_and_each_turn_has_its_ratio():
  order = []
  sides = {
    OURS: Recorded(OURS, [100, 1, 2, 4], order),
    "other": Recorded("other", [100, 3, 4, 4], order),
  }
  measured = in_turn(sides, 3, "train", "rows")
  assert order[:2] in (["other", OURS], [OURS, "other"])
  assert [set(order[i : i + 2]) for i in range(0, 8, 2)] == [{OURS, "other"}] * 4
  assert order[2:4] != order[4:6]  # no side is always first
  assert measured.seconds == {OURS: [1, 2, 4], "other": [3, 4, 4]}  # without the warm-up
  assert measured.ratio("other") == spread([3, 2, 1]) == (2, 1, 3)
  assert measured.values["other"] == ("train", ("rows",))
