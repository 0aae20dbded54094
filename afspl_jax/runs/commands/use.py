"""Commands that use or score a trained prompter: caption, answer, evaluate, export, score."""

import argparse
import glob
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afspl_jax.config.experiment import Eval
from afspl_jax.config.fields import SETTINGS
from afspl_jax.data.splits import SPLITS, named_split
from afspl_jax.errors import UserError
from afspl_jax.runs.commands.groups import CommandGroup

if TYPE_CHECKING:
  from afspl_jax.runs.trained.model import Model

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")  # in folders
_WORLD = (
  " The tiny pair in this package has seen only a drawn world of coloured shapes: about a photo it"
  " says well-formed nonsense."
)


def add_commands(parsers: Any) -> CommandGroup:
  """Adds the commands."""
  group = CommandGroup(parsers, "use", "afspl caption runs/shapes photo.jpg scans/")
  caption = group.add(
    "caption",
    _use,
    "describe images with a run's prompter, as JSON lines",
    f"Describes images, one JSON line each. Exit status 1 if a file is not an image.{_WORLD}",
  )
  answer = group.add(
    "answer",
    _use,
    "answer a question about images with a run's prompter, as JSON lines",
    "Answers one question about each image, one JSON line each. Exit status 1 if a file is not an"
    f" image.{_WORLD}",
  )
  for parser in (caption, answer):
    parser.add_argument(
      "folder", metavar="RUN", help="a run's folder, an export, or its name on the hub"
    )
    parser.add_argument(
      "images", nargs="+", metavar="IMAGE", help="files, folders, or patterns such as 'scans/*.png'"
    )
    parser.add_argument("--prompts", action="store_true", help="add fusion weights, chosen prompts")
    parser.add_argument("--batch", type=int, default=8, help="images at a time; default 8")
    _add_prompter(parser)
    _add_decoding(parser)
  answer.add_argument("question", help='such as "how many shapes are there ?"')
  caption.set_defaults(question="")
  _add_evaluate(group)

  export = group.add(
    "export",
    _export,
    "write a run's prompter as one safetensors file",
    "Writes the shared part of the prompter, its settings, and the names and hashes of the two"
    " backbones that it needs. With --site the file also holds the site's local prompt, which"
    " otherwise never leaves the site.",
  )
  export.add_argument("folder", metavar="RUN", help="a run's folder")
  export.add_argument("file", type=Path, metavar="FILE.safetensors", help="with --hub: a folder")
  export.add_argument(
    "--hub",
    action="store_true",
    help="write a folder for `hf upload`: the file, the settings, and a model card",
  )
  _add_prompter(export)

  score = group.add(
    "score",
    _score,
    "compute BLEU-1..4, CIDEr, ROUGE-L, exact match and VQA accuracy of a file, as JSON",
  )
  score.add_argument("file", help='lines like {"prediction": "...", "references": ["...", "..."]}')
  return group


def _add_evaluate(group: CommandGroup) -> None:
  evaluate = group.add(
    "evaluate",
    _evaluate,
    "score a run's checkpoint, with 95 % intervals",
    "Scores a checkpoint exactly as training does, or with other choices: another split, more"
    " beams, personalised models, more scores.",
  )
  evaluate.add_argument("folder", type=Path, metavar="RUN", help="a run's folder")
  evaluate.add_argument(
    "--split", default="test", type=lambda name: named_split(name) or name, choices=SPLITS
  )
  evaluate.add_argument("--examples", type=int, help="of the split, evenly spread; 0 = all")
  evaluate.add_argument(
    "--personal", action="store_true", help="each example by its own site's personalised model"
  )
  evaluate.add_argument(
    "--more",
    nargs="+",
    default=[],
    choices=("clipscore", "retrieval", "meteor", "spice"),
    help="scores that take longer; the last two need Java",
  )
  evaluate.add_argument("--out", type=Path, help="folder to write to; default RUN/evaluations")
  evaluate.add_argument("--json", action="store_true", help="print JSON, not a table")
  _add_prompter(evaluate, own=False)
  _add_decoding(evaluate)


def _add_prompter(parser: argparse.ArgumentParser, own: bool = True) -> None:
  parser.add_argument("--round", type=int, help="one of the two kept; default the newest")
  parser.add_argument(
    "--site", default="", metavar="NAME", help="with the local prompt of this site"
  )
  if own:
    parser.add_argument("--own", default="", metavar="RUN", help="the run's folder at that site")
  parser.add_argument("--clip", default="", metavar="FOLDER", help="if not where the run found it")
  parser.add_argument("--t5", default="", metavar="FOLDER", help="if not where the run found it")


_DECODING = ("beams", "length_penalty", "no_repeat_ngram", "min_tokens", "max_tokens")


def _add_decoding(parser: argparse.ArgumentParser) -> None:
  group = parser.add_argument_group("how texts are generated; default: as the run was scored")
  for name in _DECODING:
    kind, meaning = type(getattr(Eval(), name)), SETTINGS[f"eval.{name}"].meaning
    group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N", help=meaning)


def _decoding(args: argparse.Namespace) -> dict[str, Any]:
  return {name: getattr(args, name) for name in _DECODING if getattr(args, name) is not None}


def _use(args: argparse.Namespace) -> int:
  from afspl_jax.runs.prepare import enable_compilation_cache
  from afspl_jax.runs.trained.model import load

  if args.command == "answer" and not args.question.strip():
    raise UserError("the question: expected some words; got none")
  files = _files(args.images)
  enable_compilation_cache()
  model = load(
    args.folder,
    round=args.round,
    site=args.site,
    own=args.own,
    clip=args.clip,
    t5=args.t5,
    batch_size=args.batch,
    **_decoding(args),
  )
  done = 0
  for start in range(0, len(files), model.batch_size):
    for line in _predictions(
      model, files[start : start + model.batch_size], args.question, args.prompts
    ):
      print(json.dumps(line, ensure_ascii=False), flush=True)
      done += 1
  return 0 if done == len(files) else 1


def _predictions(
  model: "Model", files: Sequence[Path], question: str, prompts: bool
) -> Iterator[dict[str, Any]]:
  """The predictions for the images that can be read; stderr names the others."""
  from afspl_jax.data.images import decode_image
  from afspl_jax.runs.trained.model import ImageQuestion

  asked, named = [], []
  for file in files:
    try:
      asked.append(ImageQuestion(decode_image(file, str(file)), question))
      named.append(file)
    except UserError as error:
      print(error, file=sys.stderr)
  for file, generated in zip(named, model.predict(asked), strict=True):
    line: dict[str, Any] = {"image": str(file)}
    if question:
      line["question"] = question
    line["prediction"] = generated.text
    if generated.unknown_tokens:
      line["unknown_tokens"] = generated.unknown_tokens
    yield line | ({"fusion": generated.fusion, "prompts": generated.prompts} if prompts else {})


def _files(given: Sequence[str]) -> list[Path]:
  """The files that arguments mean, in their order; one that is not there stays, to be named."""
  out: list[Path] = []
  for name in given:
    path = Path(name)
    if path.is_dir():
      found = sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
      if not found:
        raise UserError(f"{path}: expected images, {' '.join(_SUFFIXES)}; got a folder without any")
      out += found
    elif not path.exists() and any(mark in name for mark in "*?["):
      # Not pathlib's, which raises for "**.png".
      found = sorted(p for p in map(Path, glob.glob(name, recursive=True)) if p.is_file())
      if not found:
        raise UserError(f"{name}: expected a pattern that files have; got none that do")
      out += found
    else:
      out.append(path)
  return out


def _export(args: argparse.Namespace) -> int:
  from afspl_jax.runs.trained.hub_folder import write_hub_folder
  from afspl_jax.runs.trained.trained_prompter import export_prompter, open_trained_prompter

  given = {"clip": args.clip, "t5": args.t5}
  trained = open_trained_prompter(Path(args.folder), args.round, args.site, args.own, given)
  write = write_hub_folder if args.hub else export_prompter
  described = write(trained, args.file)
  for kind, identity in described.backbones.items():
    name = getattr(described.config.backbone, kind)
    print(f"needs the {kind} {name!r} with hash {identity}")
  if described.site:
    print(f"contains the local prompt of {described.site}: do not publish this file")
  print(f"written: {args.file}, the prompter after round {described.round}")
  if args.hub:
    print(f"look at {args.file / 'README.md'}, then: hf upload OWNER/NAME {args.file}")
  return 0


def _evaluate(args: argparse.Namespace) -> int:
  from afspl_jax.reporting.score_table import format_evaluation
  from afspl_jax.runs.prepare import enable_compilation_cache
  from afspl_jax.runs.scoring.rescore import EvaluationRequest, evaluate_run, write_evaluation

  if args.personal and args.site:
    raise UserError("expected --personal, which is all sites, or --site=NAME; got both")
  enable_compilation_cache()
  request = EvaluationRequest(
    split=args.split,
    round=args.round,
    personalised=args.personal,
    site=args.site,
    examples=args.examples,
    more=tuple(args.more),
    changes=_decoding(args),
    folders={"clip": args.clip, "t5": args.t5},
  )
  found = evaluate_run(args.folder, request)
  file = write_evaluation(found, args.out or args.folder / "evaluations")
  print(json.dumps(found.summary, indent=2) if args.json else format_evaluation(found.summary))
  print(f"written: {file}, and the predictions beside it", file=sys.stderr)
  return 0


def _score(args: argparse.Namespace) -> int:
  from afspl_jax.evaluation.score_file import score_file

  try:
    print(json.dumps(score_file(args.file), indent=2))
  except (OSError, ValueError) as error:
    raise UserError(str(error)) from error
  return 0
