"""Command-line flags to a resolved config, through ml_collections."""

import traceback
from pathlib import Path
from typing import Any, TypeVar

from absl import flags
from ml_collections import config_flags

from afspl_jax.config import Experiment
from afspl_jax.errors import UserError
from afspl_jax.fields import check_type, known_fields, unknown

T = TypeVar("T")

_USAGE = """usage: python launch.py [--config=NAME.py] [--config.FIELD=VALUE ...] [--workdir=FOLDER]

  --config   an experiment: a file in configs/ ({names}), or a path to one; default shapes.py
  --workdir  the run's folder; default runs/NAME. The same command again goes on after the last
             finished round.

fields that --config.FIELD=VALUE sets:
{fields}"""


def parse(argv: list[str], configs: Path) -> tuple[Experiment, Path]:
  """Reads the config file that the flags name, and applies their overrides.

  Args:
    argv: as in sys.argv.
    configs: folder where `--config=NAME.py` is looked up first.

  Returns:
    The experiment and the run's folder.

  Raises:
    UserError: no such config, an unknown flag or field, or a value of the wrong type.
    SystemExit: after printing what `--help` asks for.
  """
  if any(arg in ("-h", "--help") for arg in argv[1:]):
    print(_help(configs))
    raise SystemExit(0)
  path = find(_config_name(argv), configs, "--config=")
  config = load(path, "get_config", Experiment)
  fields = dict(known_fields(Experiment()))
  # Without its dashes, `config=x.py` is no flag: it stays, and is refused below.
  given = [arg for arg in argv[1:] if arg.split("=")[0] not in ("--config", "-config")]
  for arg in given:
    name = arg.lstrip("-").split("=")[0]
    if name.startswith("config.") and name.removeprefix("config.") not in fields:
      raise UserError(f"--{name}: {unknown(name.removeprefix('config.'), fields)}")
  values = flags.FlagValues()
  argv = [argv[0], *given]
  flags.DEFINE_string("workdir", f"runs/{path.stem}", "the run's folder", flag_values=values)
  try:
    flag = config_flags.DEFINE_config_dataclass("config", config, flag_values=values, sys_argv=argv)
    rest = values(argv)
    config = flag.value
  except flags.IllegalFlagValueError as error:
    raise UserError(_wrong_type(given, fields, error)) from error
  except flags.Error as error:
    raise UserError(f"{_first_line(error)}. Try --help") from error
  if rest[1:]:
    raise UserError(f"expected flags, such as --config=coco.py; got {rest[1]!r}. Try --help")
  for name, value in known_fields(config):  # neither a dataclass nor ml_collections sees them all
    check_type(f"--config.{name}", value, fields.get(name))
  return config, Path(values.workdir)


def find(name: str, configs: Path, flag: str = "") -> Path:
  """Where a config file is: `name` in the folder `configs`, or else as a path.

  Raises:
    UserError: neither is a .py file; the message begins with `flag`.
  """
  for path in (configs / name, Path(name)):
    if path.is_file() and path.suffix == ".py":
      return path.resolve()
  raise UserError(
    f"{flag}{name}: expected one of {_names(configs)}, or a path to a .py file;"
    f" neither {configs / name} nor {Path(name).absolute()} is one"
  )


def load(path: Path, function: str, kind: type[T]) -> T:
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
    raise UserError(f"{where}: {type(error).__name__}: {_first_line(error)}") from error
  if not isinstance(value, kind):
    a = "an" if kind.__name__[0] in "AEIOU" else "a"
    raise UserError(
      f"{path}: expected {function}() to return {a} {kind.__name__}; got {type(value).__name__}"
    )
  return value


def _config_name(argv: list[str]) -> str:
  """The last --config wins, as with every flag."""
  name = "shapes.py"
  for i, arg in enumerate(argv):
    key, equals, value = arg.partition("=")
    if key in ("--config", "-config"):
      name = value if equals else argv[i + 1] if i + 1 < len(argv) else ""
      if not equals:
        raise UserError(f"--config: write it with an equals sign: --config={name or 'shapes.py'}")
  return name


def _wrong_type(given: list[str], fields: dict[str, object], error: BaseException) -> str:
  for arg in given:
    name, _, value = arg.lstrip("-").removeprefix("config.").partition("=")
    if f"{name}={value}" in str(error) and name in fields:
      wanted, now = type(fields[name]).__name__, fields[name]
      return f"--config.{name}: expected {wanted}, such as {now!r}; got {value!r}"
  return _first_line(error)


def _help(configs: Path) -> str:
  fields = [f"  {name} = {value!r}" for name, value in known_fields(Experiment())]
  return _USAGE.format(names=_names(configs), fields="\n".join(fields))


def _names(configs: Path) -> str:
  return ", ".join(sorted(path.name for path in configs.glob("*.py")))


def _first_line(error: BaseException) -> str:
  return (str(error).splitlines() or [type(error).__name__])[0]
