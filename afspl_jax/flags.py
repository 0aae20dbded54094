"""Command-line flags to a resolved config, through ml_collections."""

import dataclasses
from pathlib import Path

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
  fields = dict(known_fields(Experiment()))
  for arg in argv[1:]:
    name = arg.lstrip("-").split("=")[0]
    if name.startswith("config.") and name.removeprefix("config.") not in fields:
      raise UserError(_unknown(name.removeprefix("config."), fields))
  values = flags.FlagValues()
  given = [arg for arg in argv[1:] if arg.lstrip("-").split("=")[0] != "config"]
  argv = [argv[0], f"--config={path}", *given]
  flag = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
  flags.DEFINE_string("workdir", f"runs/{path.stem}", "the run's folder", flag_values=values)
  try:
    rest = values(argv)
    config = flag.value
  except flags.IllegalFlagValueError as error:
    raise UserError(_wrong_type(given, fields, error)) from error
  except flags.Error as error:
    raise UserError(f"{_first_line(error)}. Try --help") from error
  except (ImportError, SyntaxError, TypeError, AttributeError, NameError) as error:
    raise UserError(f"{path}: {type(error).__name__}: {_first_line(error)}") from error
  if rest[1:]:
    raise UserError(f"expected flags; got {rest[1]!r}. Try --help")
  if not isinstance(config, Experiment):
    raise UserError(
      f"{path}: expected get_config() to return an Experiment; got {type(config).__name__}"
    )
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
