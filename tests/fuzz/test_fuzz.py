"""Whatever is read from outside is taken or refused in plain words; nothing else may come of it."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.mutations import mutate
from tests.fuzz.target import seed, tell
from tests.fuzz.targets import TARGETS

_SECONDS, _FEWEST, _MOST = 0.08, 1, 20  # of each target; `python -m tests.fuzz` looks for longer
_REFUSED = ("eps",)  # whole as they are


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of a damaged TIFF that it can still read
@pytest.mark.parametrize("name", TARGETS)
def test_a_damaged_or_hostile_input_is_taken_or_refused_clearly(name):
  target = TARGETS[name]
  assert bool(tell(target, seed(target))) == (name in _REFUSED)

  @settings(
    max_examples=max(_FEWEST, min(_MOST, int(_SECONDS / target.cost))),
    derandomize=True,
    database=None,
    deadline=None,
  )
  @given(st.integers(0, 2**64 - 1))
  def holds(number: int) -> None:
    tell(target, mutate(seed(target), Random(number)))

  holds()
