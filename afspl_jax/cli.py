"""The `afspl` command."""

import argparse
import json
import sys

from afspl_jax.metrics.jsonl import score_file


def main(argv: list[str] | None = None) -> int:
  """Runs one command; returns 0, or 2 after a user's mistake in one clear message."""
  parser = argparse.ArgumentParser(prog="afspl", description=__doc__)
  commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
  score = commands.add_parser(
    "score", help="BLEU-1..4, CIDEr and ROUGE-L of a file of predictions, as JSON"
  )
  score.add_argument("file", help='lines like {"prediction": "...", "references": ["...", "..."]}')
  args = parser.parse_args(argv)
  try:
    print(json.dumps(score_file(args.file), indent=2))
  except (OSError, ValueError) as error:
    print(f"afspl {args.command}: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
