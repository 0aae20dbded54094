"""Command-line flags to a resolved config, through ml_collections."""

from pathlib import Path
from typing import NamedTuple

from absl import flags
from ml_collections import config_flags

from afspl_jax.config.experiment import Experiment
from afspl_jax.config.fields import check_type, known_fields, unknown
from afspl_jax.config.files import find_config, first_line, load_config, names
from afspl_jax.config.reference import help_text
from afspl_jax.config.setting import require
from afspl_jax.errors import UserError

ROLES = ("local", "server", "client", "local-net")

_USAGE = """usage: {program} [--config=NAME.py] [--config.FIELD=VALUE ...] [--workdir=FOLDER]
       [--role=local|server|client|local-net] [--superlink=HOST:PORT] [--keys=FOLDER]
       [--site=NAME] [--data=FOLDER] [--roster=FILE] [--insecure] [--offline]

Runs an experiment. The same command again continues after the last finished round.

  --config     experiment: a file in configs/, or a path to one; default shapes.py.
               In configs/: {names}
  --workdir    folder of the run; default runs/NAME, of a client runs/NAME-SITE
  --role       local (default): all clients in this process
               server: sites on other hosts connect to this one
               client: this host is a site
               local-net: server and sites on this host, over TLS
  --superlink  HOST:PORT of the server; at a server: where to listen, default 0.0.0.0:8000
  --keys       folder of `afspl keys`; default keys. A server reads the sites' public keys from
               FOLDER/sites
  --site       name of this client in the federation
  --data       folder with all data of this client (data.dir); without it, the client trains on
               its part of the experiment's data
  --roster     file with the public keys of all sites, from `afspl keys roster`, for
               secure.aggregation; without it, a site's key is pinned when it is first seen
  --insecure   no TLS and no keys: anyone who reaches the port can read and take part. For
               experiments only
  --offline    fetch nothing from the Hugging Face hub, as with HF_HUB_OFFLINE=1
  --help       this text; `--help GROUP` lists the fields of one group

Fields, set by --config.FIELD=VALUE [legal values; unit]:

{fields}"""


class Launch(NamedTuple):
  """What a command line asks for."""

  config: Experiment
  workdir: Path
  role: str = "local"
  superlink: str = ""
  keys: Path = Path("keys")
  site: str = ""
  own_data: bool = False  # all of a client's data is its own
  roster: Path | None = None  # of the sites' public keys, if one is given
  insecure: bool = False
  offline: bool = False  # nothing is fetched from the hub


def parse_flags(argv: list[str], configs: Path) -> Launch:
  """Reads the config file that the flags name, and applies their overrides.

  Args:
    argv: as in sys.argv; the first is what help calls the program.
    configs: folder where `--config=NAME.py` is looked up first.

  Raises:
    UserError: no such config, an unknown flag or field, a value of the wrong type, or a flag that
      the role lacks or has no use for.
    SystemExit: after printing what `--help` asks for.
  """
  if any(arg.partition("=")[0] in ("-h", "--help") for arg in argv[1:]):
    print(_help(argv, configs))
    raise SystemExit(0)
  path = find_config(_config_name(argv), configs, "--config=")
  config = load_config(path, "get_config", Experiment)
  fields = dict(known_fields(Experiment()))
  # Without its dashes, `config=x.py` is not a flag: it stays, and is rejected below.
  given = [arg for arg in argv[1:] if arg.split("=")[0] not in ("--config", "-config")]
  for arg in given:
    name = arg.lstrip("-").split("=")[0]
    if name.startswith("config.") and name.removeprefix("config.") not in fields:
      raise UserError(f"--{name}: {unknown(name.removeprefix('config.'), fields)}")
  values = flags.FlagValues()
  argv = [argv[0], *given]
  for name, default in {"role": "local", **_OF_ROLES, "workdir": ""}.items():
    flags.DEFINE_string(name, default, "see _USAGE", flag_values=values)
  for name in ("insecure", "offline"):
    flags.DEFINE_boolean(name, False, "see _USAGE", flag_values=values)
  try:
    flag = config_flags.DEFINE_config_dataclass("config", config, flag_values=values, sys_argv=argv)
    rest = values(argv)
    config = flag.value
  except flags.IllegalFlagValueError as error:
    raise UserError(_wrong_type(given, fields, error)) from error
  except flags.Error as error:
    raise UserError(f"{first_line(error)}. Try --help") from error
  if rest[1:]:
    raise UserError(f"expected flags, such as --config=coco.py; got {rest[1]!r}. Try --help")
  for name, value in known_fields(config):  # neither a dataclass nor ml_collections sees them all
    check_type(f"--config.{name}", value, fields.get(name))
  _check_role(values)
  if values.data:
    config.data.dir = values.data
  return Launch(
    config=config,
    workdir=Path(values.workdir or "-".join(filter(None, (f"runs/{path.stem}", values.site)))),
    role=values.role,
    superlink=values.superlink or "0.0.0.0:8000",
    keys=Path(values.keys or "keys"),
    site=values.site,
    own_data=bool(values.data),
    roster=Path(values.roster) if values.roster else None,
    insecure=values.insecure,
    offline=values.offline,
  )


# Flags that not every role has.
_OF_ROLES = {"superlink": "", "keys": "", "site": "", "data": "", "roster": ""}
_TAKES = {
  "local": (),
  "local-net": (),
  "server": ("superlink", "keys"),
  "client": ("superlink", "keys", "site", "data", "roster"),
}


def _check_role(values: flags.FlagValues) -> None:
  role = values.role
  require("--role", role, role in ROLES, f"one of {', '.join(ROLES)}")
  for name in _OF_ROLES:
    if values[name].value and name not in _TAKES[role]:
      takers = " or ".join(f"--role={other}" for other in ROLES if name in _TAKES[other])
      raise UserError(f"--{name}: expected with {takers}; got --role={role}. Leave it out")
  if values.insecure and role not in ("server", "client"):
    raise UserError(f"--insecure: expected with --role=server or client; got --role={role}")
  if role == "client":
    for name, meant in (("superlink", "the server's HOST:PORT"), ("site", "this site's name")):
      if not values[name].value:
        raise UserError(f"--{name}: expected {meant} with --role=client; got nothing")
  if values.superlink:
    host, colon, port = values.superlink.rpartition(":")
    if not (host and colon and port.isdecimal() and len(port) < 6 and 0 < int(port) < 2**16):
      raise UserError(f"--superlink: expected HOST:PORT; got {values.superlink!r}")


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
  return first_line(error)


def _help(argv: list[str], configs: Path) -> str:
  """The text for `--help`, `--help GROUP` and `--help=GROUP`."""
  at = next(i for i, arg in enumerate(argv) if i and arg.partition("=")[0] in ("-h", "--help"))
  _, _, group = argv[at].partition("=")
  if not group and at + 1 < len(argv) and not argv[at + 1].startswith("-"):
    group = argv[at + 1]
  if group:
    return help_text(group).lstrip()
  return _USAGE.format(program=argv[0], names=names(configs), fields=help_text())
