"""Local training: a step of one client, and a round of many clients."""

from collections.abc import Iterator

from benchmarks import floor
from benchmarks.bench import Bench
from benchmarks.case import CLIPS, INSTRUCTION, T5S, Case, Rows, rows
from benchmarks.compare import OURS, in_turn
from benchmarks.table import Line, compared

# Steps per call, so that the fixed cost of a call is shared as in a round: after another side's
# turn, the kernel takes 0.6 s to provide the memory of a call.
_STEPS = 20
_ROWS, _QUICK_ROWS = 320, 64  # at most, per call


def train_step(bench: Bench) -> Iterator[Line]:
  """Measures milliseconds per sample with cached features, and the time to encode an image."""
  models = ("small",) if bench.quick else ("small", "base")
  for model in models:
    sides = bench.sides(Case(t5=model, dtype=bench.dtype))
    encoding = {name: side for name, side in sides.items() if name != "P1"}
    number = sides.case.images
    least = floor.clip_image(CLIPS["B/32"]) / bench.rates.multiply
    yield compared(
      f"an image through CLIP ViT-B/32, beside flan-t5-{model}",
      in_turn(encoding, bench.turns, "encode", warm=False),  # they did it when they started
      each=1e3 / number,
      unit="ms",
      floor=number * least,
      note="once per image; P1 does it in every step",
    )
    for batch in (16,) if bench.quick else (4, 16, 64):
      steps = min(_STEPS, (_QUICK_ROWS if bench.quick else _ROWS) // batch)
      yield _training(bench, sides, f"train step, flan-t5-{model}", steps, 1, batch)


def federated_round(bench: Bench) -> Iterator[Line]:
  """Measures local training of a round's clients; P3 includes Flower's messages and average."""
  sides = bench.sides(Case(dtype=bench.dtype), rounds=True)
  # All steps of a round cost the same, except for the fixed cost of a call (see _STEPS).
  for steps, clients, of in ((1, 10, 100),) if bench.quick else ((10, 10, 100), (1, 100, 1000)):
    work = f"round of {clients} of {of:,} clients, batch 8, {steps} of its 10 steps"
    yield _training(bench, sides, work, steps, clients, 8)


def _training(bench: Bench, sides, work: str, steps: int, clients: int, batch: int) -> Line:
  given = rows(sides.case, steps, clients, batch)
  samples = steps * clients * batch
  for name, side in sides.items():  # compile for these shapes
    side("train", given if name == OURS else rows(sides.case, 1, min(clients, 10), batch))
  measured = in_turn(sides, bench.turns, "train", given, warm=False)
  losses = {name: trained.losses for name, trained in measured.values.items()}
  apart = max(float(abs(x - losses[OURS]).max() / losses[OURS].max()) for x in losses.values())
  line = compared(
    f"{work}, batch {batch}" if clients == 1 else work,
    measured,
    each=1e3 / samples,
    unit="ms per sample",
    floor=needed(sides.case, given) / bench.rates.multiply,
    note=f"losses agree to {apart:.0e}",
  )
  line.details["losses_apart"] = apart
  return line


def needed(case: Case, given: Rows) -> float:
  """Returns the T5 operations that training on these rows needs, without padding."""
  lengths = given.targets_mask.sum(axis=-1)
  read = case.config.prompter.tokens + case.visual_tokens + INSTRUCTION
  row = floor.t5_row(T5S[case.t5], read, float(lengths.mean()))
  return row.train * lengths.size
