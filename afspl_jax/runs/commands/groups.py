"""A group of commands: their parsers, and their part of the help text."""

import argparse
from collections.abc import Callable
from typing import Any

_COLUMN = 13  # where the descriptions of commands begin


class CommandGroup:
  """Adds commands to a parser, and lists them.

  Args:
    parsers: of `argparse.ArgumentParser.add_subparsers`.
    name: of the group.
    example: a command line.
  """

  def __init__(self, parsers: Any, name: str, example: str):
    self._parsers, self._name, self._example = parsers, name, example
    self._lines: list[str] = []

  def add(
    self,
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    description: str = "",
  ) -> argparse.ArgumentParser:
    """Adds a command.

    Args:
      name: as it is typed.
      run: runs the command, and returns its exit status.
      summary: one line for the list of commands.
      description: for the command's own help; default the summary.
    """
    self._lines.append(f"  {name:<{_COLUMN - 2}}{summary}")
    text = description or f"{summary[0].upper()}{summary[1:]}."
    # No `help`: argparse would list the commands a second time.
    parser = self._parsers.add_parser(name, description=text.replace("%", "%%"))
    parser.set_defaults(run=run)
    return parser

  def help_text(self) -> str:
    """Returns the commands with a line each, and the example."""
    example = f"{'':<{_COLUMN}}e.g. {self._example}"
    return "\n".join([f"{self._name}:", *self._lines, example])
