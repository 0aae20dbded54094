"""What every measurement is given: sides to compare, the machine's rates, how long it may take."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from benchmarks.case import Case, write_backbones
from benchmarks.compare import OURS
from benchmarks.floor import Rates
from benchmarks.process import Child

SIDES = {
  OURS: "benchmarks.sides.afspl:Afspl",
  "P1": "benchmarks.sides.torch_plain:TorchPlain",
  "P2": "benchmarks.sides.torch_best:TorchBest",
  "P3": "benchmarks.sides.torch_ray:TorchRay",
}
PLAIN = (OURS, "P1", "P2")  # what the test extra brings all packages of
_OF_ROUNDS = ("P3",)  # sides that do nothing else

# What transformers says while it loads has no place between the tables.
_QUIET = {"TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}


class Sides(dict[str, Child]):
  """Sides at work on one case, by name."""

  case: Case


@dataclass
class Bench:
  """How to measure."""

  folder: Path  # keeps backbones of random weights between two runs
  rates: Rates
  quick: bool  # a few minutes on two cores
  turns: int  # times that every side does a piece of work
  names: tuple[str, ...] = PLAIN
  dtype: str = "float32"  # of the backbones
  _sides: Sides | None = None

  def sides(self, case: Case, rounds: bool = False) -> Sides:
    """The sides at work on a case: those that were so last, or else new ones.

    Args:
      case: models and settings.
      rounds: with those that do nothing but rounds.
    """
    names = [name for name in self.names if rounds or name not in _OF_ROUNDS]
    if self._sides is None or self._sides.case != case or set(self._sides) != set(names):
      self.close()
      folders = write_backbones(case, self.folder)
      with Child("benchmarks.sides.afspl:untrained", case, folders) as child:
        params = child.built.value
      self._sides = Sides()
      self._sides.case = case
      for name in names:
        self._sides[name] = Child(SIDES[name], case, folders, params, environment=_QUIET)
        self._sides[name]("encode")
    return self._sides

  def close(self) -> None:
    """Ends the sides."""
    with contextlib.ExitStack() as stack:
      for child in (self._sides or {}).values():
        stack.callback(child.close)
    self._sides = None
