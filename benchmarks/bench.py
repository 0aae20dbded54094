"""Settings of all benchmarks, and the programs that they compare."""

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
PLAIN = (OURS, "P1", "P2")  # need no packages beyond the extra `test`
_ROUNDS_ONLY = ("P3",)

# Keeps the messages of transformers out of the printed tables.
_QUIET = {"TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}


class Sides(dict[str, Child]):
  """Running sides of one case, by name."""

  case: Case


@dataclass
class Bench:
  """Settings of a measurement, and its running sides."""

  folder: Path  # backbones with random weights, kept between runs
  rates: Rates
  quick: bool  # a few minutes on two cores
  turns: int  # repetitions of each measurement
  names: tuple[str, ...] = PLAIN
  dtype: str = "float32"  # of the backbones
  _sides: Sides | None = None

  def sides(self, case: Case, rounds: bool = False) -> Sides:
    """Returns the running sides of a case; starts them unless the last case was the same.

    Args:
      case: models and settings.
      rounds: include sides that only train rounds.
    """
    names = [name for name in self.names if rounds or name not in _ROUNDS_ONLY]
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
    """Ends all sides."""
    with contextlib.ExitStack() as stack:
      for child in (self._sides or {}).values():
        stack.callback(child.close)
    self._sides = None
