"""Config files: found by name, and run for the experiment or study that they return."""

import os
import traceback
from pathlib import Path
from typing import Any, TypeVar

from afspl_jax.errors import UserError

T = TypeVar("T")

_ROOT = Path(__file__).parents[2]  # a checkout, or where the wheel is installed
_IN_WHEEL = Path(__file__).parent / "experiments"  # a copy of the checkout's configs/
CONFIGS = _ROOT / "configs" if (_ROOT / "launch.py").is_file() else _IN_WHEEL


def find_config(name: str, configs: Path, flag: str = "") -> Path:
  """Where a config file is: `name` in the folder `configs`, or else as a path.

  Raises:
    UserError: neither is a .py file; the message begins with `flag`.
  """
  for path in (configs / name, Path(name)):
    if path.suffix == ".py" and os.path.isfile(path):  # pathlib's raises at a long name
      return path.resolve()
  raise UserError(
    f"{flag}{name}: expected one of {names(configs)}, or a path to a .py file;"
    f" neither {configs / name} nor {Path(name).absolute()} is one"
  )


def load_config(path: Path, function: str, kind: type[T]) -> T:
  """What a config file's `function` returns.

  Raises:
    UserError: the file does not run, or gives no `kind`.
  """
  namespace: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
  try:
    exec(compile(path.read_bytes(), path, "exec"), namespace)
    value = namespace[function]() if function in namespace else None
  except Exception as error:  # the user's code: whatever it raises is theirs
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    where = ":".join([str(path), *map(str, lines[-1:])])
    raise UserError(f"{where}: {type(error).__name__}: {first_line(error)}") from error
  if not isinstance(value, kind):
    a = "an" if kind.__name__[0] in "AEIOU" else "a"
    raise UserError(
      f"{path}: expected {function}() to return {a} {kind.__name__}; got {type(value).__name__}"
    )
  return value


def names(configs: Path) -> str:
  """The config files in a folder, for an error or a help text."""
  return ", ".join(sorted(path.name for path in configs.glob("*.py")))


def first_line(error: BaseException) -> str:
  """What an exception says, in one line."""
  return (str(error).splitlines() or [type(error).__name__])[0]
