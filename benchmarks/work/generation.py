"""Generation of captions from features, by greedy search and by beam search."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from benchmarks import floor
from benchmarks.bench import Bench
from benchmarks.case import INSTRUCTION, T5S, Case, rows
from benchmarks.compare import OURS, in_turn
from benchmarks.table import Line, compared

_TOKENS = 24  # generated per row


def generate(bench: Bench) -> Iterator[Line]:
  """Measures a batch of images; P1 encodes the images, the others have their features."""
  sides = bench.sides(Case(dtype=bench.dtype))
  for images in (32,) if bench.quick else (32, 256):
    given = rows(sides.case, 1, 1, images)
    for beams in (1, 4):
      measured = in_turn(sides, bench.turns, "generate", given, beams, _TOKENS)
      ours = measured.values[OURS]
      same = {
        name: float(np.mean(np.all(ids == ours, axis=1)))
        for name, ids in measured.values.items()
        if name != OURS
      }
      yield compared(
        f"{images} images, {'greedy' if beams == 1 else f'beam {beams}'}, {_TOKENS} tokens",
        measured,
        floor=_least(bench, sides.case, images, beams),
        note=", ".join(f"{share:.0%} of texts equal {name}'s" for name, share in same.items()),
      )


def _least(bench: Bench, case: Case, images: int, beams: int) -> float:
  """Returns the larger of two times: of all products, and of reading the decoder per token."""
  config = T5S[case.t5]
  read = case.config.prompter.tokens + case.visual_tokens + INSTRUCTION
  row = floor.t5_row(config, read, _TOKENS)
  once, each = row.encoder + row.cross, row.decoder + row.head
  multiply = images * (once + beams * each) / bench.rates.multiply
  size = jnp.dtype(case.dtype).itemsize
  weights = size * floor.t5_row(config, 0, 1).forward / 2  # one multiplication per weight
  return max(multiply, images * once / bench.rates.multiply + _TOKENS * weights / bench.rates.read)
