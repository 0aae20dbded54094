"""`python -m tests.fuzz TARGET|all --seconds=N`: looks for longer than the tests do.

One target under atheris where it is installed, which goes by what code an input reaches; several,
or without it, by chance.
"""

import argparse
import importlib.util
import logging
import os
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from random import Random

_STACK = 4  # last calls by which findings are told apart


def main() -> int:
  parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
  parser.add_argument("target", help="a name; a part of names, or all: by chance")
  parser.add_argument("--seconds", type=float, default=10, help="for each target")
  parser.add_argument("--seed", type=int, default=None, help="default: the system's chance")
  parser.add_argument("--chance", action="store_true", help="without atheris")
  args = parser.parse_args()
  os.environ["JAX_PLATFORMS"] = "cpu"
  warnings.simplefilter("ignore")
  logging.disable(logging.CRITICAL)
  if importlib.util.find_spec("atheris") and not args.chance and args.target != "all":
    return _guided(args)
  return _by_chance(args)


def _by_chance(args: argparse.Namespace) -> int:
  from tests.fuzz.mutations import mutate
  from tests.fuzz.target import seed, tell
  from tests.fuzz.targets import TARGETS

  names = [name for name in TARGETS if args.target == "all" or args.target in name]
  if not names:
    sys.exit(f"{args.target}: expected all, or a part of {', '.join(TARGETS)}")
  rng, faults, done = Random(args.seed), 0, 0
  for name in names:
    target, found = TARGETS[name], {}
    tell(target, seed(target))
    taken, count, end = 0, 0, time.monotonic() + args.seconds
    while time.monotonic() < end:
      data = mutate(seed(target), rng)
      count += 1
      try:
        taken += not tell(target, data)
      except Exception as error:  # noqa: BLE001 - what is looked for
        frames = traceback.extract_tb(error.__traceback__)[-_STACK:]
        found.setdefault(
          (type(error), *(f"{f.filename}:{f.lineno}" for f in frames)), (error, data)
        )
    done, faults = done + count, faults + len(found)
    print(f"{name}: {count} inputs, {taken} taken, {len(found)} findings", flush=True)
    for (_, *frames), (error, data) in found.items():
      print(f"  {type(error).__name__}: {str(error)[:200]!r}\n    {' < '.join(reversed(frames))}")
      print(f"    {_kept(name, data)}", flush=True)
  print(f"{done} inputs, {faults} findings")
  return bool(faults)


def _guided(args: argparse.Namespace) -> int:
  import atheris

  with atheris.instrument_imports(include=["afspl_jax"]):
    from tests.fuzz.mutations import mutate
    from tests.fuzz.target import seed, tell
    from tests.fuzz.targets import TARGETS
  if args.target not in TARGETS:  # it looks at one only
    return _by_chance(args)
  target = TARGETS[args.target]
  corpus = Path(tempfile.mkdtemp(prefix="corpus"))
  (corpus / "seed").write_bytes(seed(target))

  def change(data: bytes, most: int, number: int) -> bytes:
    return mutate(data, Random(number))[:most]

  flags = [f"-max_total_time={args.seconds:g}", f"-max_len={2 * len(seed(target)) + 4096}"]
  flags += [f"-seed={args.seed}"] if args.seed is not None else []
  atheris.Setup(
    [sys.argv[0], str(corpus), *flags], lambda data: tell(target, data), custom_mutator=change
  )
  atheris.Fuzz()
  return 0


def _kept(name: str, data: bytes) -> Path:
  """The input, in a file to look at."""
  file = Path(tempfile.mkdtemp(prefix="finding")) / name
  file.write_bytes(data)
  return file


if __name__ == "__main__":
  sys.exit(main())
