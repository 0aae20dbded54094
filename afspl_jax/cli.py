"""The `afspl` command: its groups of commands, assembled."""

import argparse
import os
import shlex
import sys
from pathlib import Path

from afspl_jax.errors import UserError
from afspl_jax.runs.commands import look, operate, run, study, use
from afspl_jax.storage.disk_errors import full_disk_in_one_line
from afspl_jax.storage.versions import installed_version

_ABOUT = "Adaptive federated soft prompt learning for vision-language models."


def main(argv: list[str] | None = None) -> int:
  """Runs one command; returns its status: 2 after a user's mistake, in one clear message."""
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # there is no torch, on purpose
  argv = sys.argv[1:] if argv is None else argv
  if argv[:1] == ["run"]:
    return run.launch("afspl run", ["afspl", "run"], argv[1:])
  parser = argparse.ArgumentParser(
    prog="afspl",
    usage="afspl COMMAND ...",
    description=_ABOUT,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    add_help=False,
  )
  parser.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
  version = f"afspl {installed_version('afspl_jax')}"
  parser.add_argument("--version", action="version", version=version, help=argparse.SUPPRESS)
  parsers = parser.add_subparsers(
    dest="command",
    prog="afspl",
    metavar="COMMAND",
    help=argparse.SUPPRESS,
    parser_class=argparse.ArgumentParser,
  )
  groups = [module.add_commands(parsers) for module in (run, look, use, study, operate)]
  parser.epilog = "\n\n".join(
    [*(group.help_text() for group in groups), "afspl COMMAND --help: more; afspl --version"]
  )
  if not argv:
    parser.print_help()
    return 0
  args = parser.parse_args(argv, argparse.Namespace(again=shlex.join(["afspl", *argv])))
  try:
    with full_disk_in_one_line(Path()):
      return args.run(args)
  except UserError as error:
    print(f"afspl {args.command}: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
  sys.exit(main())
