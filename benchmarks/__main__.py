"""`python -m benchmarks`: compares the speed of afspl_jax and PyTorch on this machine."""

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from benchmarks import floor, table
from benchmarks.bench import PLAIN, SIDES, Bench
from benchmarks.compare import OURS
from benchmarks.process import ChildError
from benchmarks.work import devices, generation, memory, quality, server, start, training

WORK: dict[str, tuple[str, Callable[[Bench], Iterator[table.Line]]]] = {
  "step": ("Train step", training.train_step),
  "round": ("Local training of a federated round", training.federated_round),
  "generate": ("Generation", generation.generate),
  "memory": ("Peak memory of a simulation", memory.clients),
  "start": ("Start", start.first_round),
  "quality": ("Seconds to a CIDEr", quality.time_to_cider),
  "server": ("Aggregation", server.aggregation),
  "devices": ("Devices", devices.forced_host_devices),
}
QUICK = ("step", "round", "generate", "server")  # short, and compared with PyTorch


def main() -> int:
  """Runs the chosen benchmarks, and prints each table when it is complete.

  Returns:
    The exit status: 1 if a benchmark failed.
  """
  args = _arguments()
  rates = floor.measure(args.dtype)
  machine = _machine(args.dtype, rates)
  turns = args.turns or (2 if args.quick else 3)
  bench = Bench(args.folder, rates, args.quick, turns, (OURS, *args.beside), args.dtype)
  results: dict[str, list[table.Line]] = {}
  failed = False
  for name in args.only or (QUICK if args.quick else WORK):
    title, work = WORK[name]
    begin, lines = time.monotonic(), []
    try:
      for line in tqdm(work(bench), desc=title, unit="line", leave=False):
        lines.append(line)
    except ChildError as error:
      failed = True
      bench.close()
      lines.append(table.Line("(failed)", note=str(error).strip().splitlines()[-1]))
    print(table.markdown(title, lines) + f"\n\n({time.monotonic() - begin:.0f} s)\n", flush=True)
    results[name] = lines
    table.write(args.out, machine, results)
  bench.close()
  return int(failed)


def _arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
  parser.add_argument("--quick", action="store_true", help="small sizes; takes five minutes")
  parser.add_argument(
    "--only",
    nargs="+",
    choices=WORK,
    metavar="WORK",
    help=f"benchmarks: {', '.join(WORK)}; default all, or with --quick {', '.join(QUICK)}",
  )
  others = [name for name in SIDES if name != OURS]
  parser.add_argument(
    "--beside",
    nargs="*",
    choices=others,
    default=PLAIN[1:],
    metavar="SIDE",
    help=f"PyTorch programs: {', '.join(others)}; default {', '.join(PLAIN[1:])}. P3 needs the"
    " extra `ray`",
  )
  dtypes = ("float32", "bfloat16")
  parser.add_argument(
    "--dtype",
    choices=dtypes,
    default=dtypes[0],
    help="dtype of the backbones in step, round and generate",
  )
  parser.add_argument(
    "--turns", type=int, help="repetitions of each measurement (3; with --quick 2)"
  )
  parser.add_argument("--out", type=Path, default=Path("benchmarks.json"), help="results as JSON")
  cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
  parser.add_argument(
    "--folder", type=Path, default=cache / "afspl_jax" / "benchmarks", help="for the models"
  )
  return parser.parse_args()


def _machine(dtype: str, rates: floor.Rates) -> dict[str, Any]:
  """Describes this machine, and prints its speed."""
  cores = len(os.sched_getaffinity(0))
  device = jax.local_devices()[0].device_kind
  print(
    f"{cores} cores, {device}: {dtype} products at {rates.multiply / 1e9:,.0f} GFLOP/s,"
    f" memory read at {rates.read / 1e9:,.1f} GB/s\n",
    flush=True,
  )
  return {
    "processor": platform.processor() or platform.machine(),
    "cores": cores,
    "device": device,
    "dtype": dtype,
    "multiply_flops": rates.multiply,
    "read_bytes": rates.read,
  }


if __name__ == "__main__":
  sys.exit(main())
