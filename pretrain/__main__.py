"""Pretrains the tiny CLIP and T5 that the package ships: `python -m pretrain [FOLDER]`.

Deterministic: the same versions on the same kind of machine give the same weights. Takes about half
an hour on two cores. Writes FOLDER/clip and FOLDER/t5 in Hugging Face format.
"""

import argparse
import json
import time
from pathlib import Path

from afspl_jax.models.huggingface.locate import TINY
from pretrain import clip, t5
from pretrain.card import measure

SEED = 0
CLIP_STEPS = 1600
T5_STEPS = 4500


def main() -> None:
  """Parses the command line and pretrains."""
  parser = argparse.ArgumentParser(prog="python -m pretrain", description=__doc__)
  parser.add_argument(
    "folder", type=Path, nargs="?", default=TINY, help="default: the package's own"
  )
  parser.add_argument(
    "--only",
    choices=["clip", "t5", "scores"],
    help="pretrain only one model, or only measure the scores",
  )
  args = parser.parse_args()
  cpu, file = time.process_time(), args.folder / "scores.json"
  if args.only in (None, "clip"):
    print("contrastive loss", clip.pretrain(args.folder / "clip", CLIP_STEPS, SEED))
  if args.only in (None, "t5"):
    print("token loss", t5.pretrain(args.folder / "t5", T5_STEPS, SEED))
  if args.only in (None, "scores"):
    file.write_text(json.dumps(measure(args.folder), indent=2) + "\n")
    print(file.read_text())
  print(f"{(time.process_time() - cpu) / 60:.1f} CPU minutes")


if __name__ == "__main__":
  main()
