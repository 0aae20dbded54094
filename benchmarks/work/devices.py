"""Runs one program on 1, 2, 4 and 8 devices: the numbers are the same, compiled once."""

from collections.abc import Iterator

import numpy as np

from benchmarks.bench import SIDES, Bench
from benchmarks.case import Case, rows, write_backbones
from benchmarks.compare import OURS, spread
from benchmarks.process import Child
from benchmarks.table import Line


def forced_host_devices(bench: Bench) -> Iterator[Line]:
  """Measures a cohort's step. All devices share the same cores, so it cannot become faster."""
  case = Case(t5="small")
  folders = write_backbones(case, bench.folder)
  given = rows(case, 1, 4, 16)
  with Child("benchmarks.sides.afspl:untrained", case, folders) as child:
    params = child.built.value
  first = None
  for number in (1, 2) if bench.quick else (1, 2, 4, 8):
    flags = f"--xla_force_host_platform_device_count={number}"
    with Child(SIDES[OURS], case, folders, params, environment={"XLA_FLAGS": flags}) as child:
      child("encode")
      child("train", given)
      timed = [child("train", given) for _ in range(bench.turns)]
      compiled = child("compiled").value
    losses = timed[0].value.losses
    first = losses if first is None else first
    apart = float(np.abs(losses / first - 1).max())
    yield Line(
      f"{number} device{'s' * (number > 1)}",
      spread([x.seconds for x in timed]),
      note=f"{compiled} compiled; losses differ from one device's by {apart:.0e}",
    )
