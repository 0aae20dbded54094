"""Command-line flags to a resolved config, through ml_collections."""

import dataclasses
import traceback
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from afspl_jax.config import Experiment
from afspl_jax.errors import UserError

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
  path = _config_path(argv, configs)
  config = _load(path)
  fields = dict(known_fields(Experiment()))
  # Without its dashes, `config=x.py` is no flag: it stays, and is refused below.
  given = [arg for arg in argv[1:] if arg.split("=")[0] not in ("--config", "-config")]
  for arg in given:
    name = arg.lstrip("-").split("=")[0]
    if name.startswith("config.") and name.removeprefix("config.") not in fields:
      raise UserError(_unknown(name.removeprefix("config."), fields))
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
  _check_types(config, fields)
  return config, Path(values.workdir)


def known_fields(config: object, prefix: str = "") -> list[tuple[str, object]]:
  """Every leaf of nested dataclasses as a dotted name with its value."""
  out: list[tuple[str, object]] = []
  for field in dataclasses.fields(config):  # type: ignore[arg-type]
    value = getattr(config, field.name)
    name = f"{prefix}{field.name}"
    out += known_fields(value, f"{name}.") if dataclasses.is_dataclass(value) else [(name, value)]
  return out


def _config_path(argv: list[str], configs: Path) -> Path:
  """The last --config wins, as with every flag."""
  name = "shapes.py"
  for i, arg in enumerate(argv):
    key, equals, value = arg.partition("=")
    if key in ("--config", "-config"):
      name = value if equals else argv[i + 1] if i + 1 < len(argv) else ""
      if not equals:
        raise UserError(f"--config: write it with an equals sign: --config={name or 'shapes.py'}")
  for path in (configs / name, Path(name)):
    if path.is_file() and path.suffix == ".py":
      return path.resolve()
  raise UserError(
    f"--config={name}: expected one of {_names(configs)}, or a path to a .py file;"
    f" neither {configs / name} nor {Path(name).absolute()} is one"
  )


def _load(path: Path) -> Experiment:
  """What the file's `get_config()` returns."""
  namespace: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
  try:
    exec(compile(path.read_bytes(), path, "exec"), namespace)
    config = namespace["get_config"]() if "get_config" in namespace else None
  except Exception as error:  # the user's code: whatever it raises is theirs
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    where = ":".join([str(path), *map(str, lines[-1:])])
    raise UserError(f"{where}: {type(error).__name__}: {_first_line(error)}") from error
  if not isinstance(config, Experiment):
    raise UserError(
      f"{path}: expected get_config() to return an Experiment; got {type(config).__name__}"
    )
  return config


def _check_types(config: Experiment, fields: dict[str, object]) -> None:
  """Refuses what neither a dataclass nor ml_collections sees: a file's values, tuples' parts."""
  for name, value in known_fields(config):
    default = fields.get(name)
    number = type(value) in (int, float)
    if isinstance(default, tuple):
      fits = isinstance(value, tuple) and all(type(part) in (int, float) for part in value)
      wanted = "numbers, such as 0.5,0.5"
    else:
      fits = type(value) is type(default) or (number and isinstance(default, float))
      wanted = f"{type(default).__name__}, such as {default!r}"
    if not fits:
      raise UserError(f"--config.{name}: expected {wanted}; got {value!r}")


def _unknown(name: str, fields: dict[str, object]) -> str:
  inside = [field for field in fields if field.startswith(f"{name}.")]
  group = name.rpartition(".")[0]
  near = inside or [field for field in fields if group and field.startswith(f"{group}.")]
  groups = sorted({field.split(".")[0] for field in fields})
  return f"--config.{name}: no such field; known here: {', '.join(near or groups)}"


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
