"""Local training: a step of one client, and a round of many."""

from collections.abc import Iterator

from benchmarks import floor
from benchmarks.bench import Bench
from benchmarks.case import CLIPS, INSTRUCTION, T5S, Case, Rows, rows
from benchmarks.compare import OURS, in_turn
from benchmarks.table import Line, compared

# Of a "train step", so that what a call costs once is shared as in a round: memory for all that a
# call needs is new to the process, and after another side's turn the kernel takes .6 s to give it.
_STEPS = 20
_ROWS, _QUICK_ROWS = 320, 64  # the most of a call


def train_step(bench: Bench) -> Iterator[Line]:
  """Milliseconds a sample, features cached; and what an image costs that is not."""
  models = ("small",) if bench.quick else ("small", "base")
  for model in models:
    sides = bench.sides(Case(t5=model, dtype=bench.dtype))
    encoding = {name: side for name, side in sides.items() if name != "P1"}
    number = sides.case.images
    least = floor.clip_image(CLIPS["B/32"]) / bench.rates.multiply
    yield compared(
      f"an image through CLIP ViT-B/32, beside flan-t5-{model}",
      in_turn(encoding, bench.turns, "encode", warm=False),  # they have, when they started
      each=1e3 / number,
      unit="ms",
      floor=number * least,
      note="once an image, ever; P1 does it in every step",
    )
    for batch in (16,) if bench.quick else (4, 16, 64):
      steps = min(_STEPS, (_QUICK_ROWS if bench.quick else _ROWS) // batch)
      yield _training(bench, sides, f"train step, flan-t5-{model}", steps, 1, batch)


def federated_round(bench: Bench) -> Iterator[Line]:
  """Local training of a round's clients, from equal params; P3's messages and average are in it."""
  sides = bench.sides(Case(dtype=bench.dtype), rounds=True)
  # A round's steps are alike: the first of them tells, but for the cost of a call (see _STEPS).
  for steps, clients, of in ((1, 10, 100),) if bench.quick else ((10, 10, 100), (1, 100, 1000)):
    work = f"round of {clients} of {of:,} clients, batch 8, {steps} of its 10 steps"
    yield _training(bench, sides, work, steps, clients, 8)


def _training(bench: Bench, sides, work: str, steps: int, clients: int, batch: int) -> Line:
  given = rows(sides.case, steps, clients, batch)
  samples = steps * clients * batch
  for name, side in sides.items():  # whoever compiles does so for these very shapes
    side("train", given if name == OURS else rows(sides.case, 1, min(clients, 10), batch))
  measured = in_turn(sides, bench.turns, "train", given, warm=False)
  losses = {name: trained.losses for name, trained in measured.values.items()}
  apart = max(float(abs(x - losses[OURS]).max() / losses[OURS].max()) for x in losses.values())
  line = compared(
    f"{work}, batch {batch}" if clients == 1 else work,
    measured,
    each=1e3 / samples,
    unit="ms a sample",
    floor=needed(sides.case, given) / bench.rates.multiply,
    note=f"losses agree to {apart:.0e}",
  )
  line.details["losses_apart"] = apart
  return line


def needed(case: Case, given: Rows) -> float:
  """Operations of T5 that training on these rows cannot do without: padding is not among them."""
  lengths = given.targets_mask.sum(axis=-1)
  read = case.config.prompter.tokens + case.visual_tokens + INSTRUCTION
  row = floor.t5_row(T5S[case.t5], read, float(lengths.mean()))
  return row.train * lengths.size
