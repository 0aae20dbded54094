"""What every measurement is given: sides to compare, the machine's rates, how long it may take."""

import contextlib
from collections.abc import Iterator
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
}

# What transformers says while it loads has no place between the tables.
_QUIET = {"TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}


class Sides(dict[str, Child]):
  """Sides at work on one case, by name."""

  case: Case


@dataclass(frozen=True)
class Bench:
  """How to measure."""

  folder: Path  # keeps backbones of random weights between two runs
  rates: Rates
  quick: bool  # a few minutes on two cores
  turns: int  # times that every side does a piece of work
  names: tuple[str, ...] = tuple(SIDES)

  @contextlib.contextmanager
  def sides(self, case: Case) -> Iterator[Sides]:
    """Starts every side on a case; they end with the block."""
    folders = write_backbones(case, self.folder)
    with contextlib.ExitStack() as stack:
      first = stack.enter_context(Child("benchmarks.sides.afspl:untrained", case, folders))
      sides = Sides()
      sides.case = case
      for name in self.names:
        child = Child(SIDES[name], case, folders, first.built.value, environment=_QUIET)
        sides[name] = stack.enter_context(child)
        child("encode")
      yield sides
