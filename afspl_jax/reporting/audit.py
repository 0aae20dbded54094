"""What left the clients of a run, from the record that they keep, held against the closed list."""

import math
import re
import socket
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from afspl_jax.config.experiment import Experiment
from afspl_jax.config.fields import from_dict
from afspl_jax.errors import UserError
from afspl_jax.federation.protocol import disclosure_list
from afspl_jax.federation.protocol.logged_values import LogLine, describe_value, is_array
from afspl_jax.storage.client_status import Outcome, parse_status
from afspl_jax.storage.json_shape import JsonShape, find_mismatch
from afspl_jax.storage.json_text import parse
from afspl_jax.storage.run_lines import WIRE, read_clients, read_lines

_FOLDERS = (".", "sites", "nodes/*")  # of clients: this process's, of local-net, of `flwr run`
_MOST_VALUES = 1000  # texts of one name that are kept
_STRUCTURE: JsonShape = {
  "structure": str,
  "leaves": [{"name": str, "rows": int, "width": int, "dtype": str}],
}
_NO_ARRAY: JsonShape = {"shape?": ()}
_ENTRY: JsonShape = (
  {"dtype": str, "shape": [int], "bytes": int},
  {"list": int, "of": str, **_NO_ARRAY},
  {"text": str, "length": int, **_NO_ARRAY},
  {"number": str, **_NO_ARRAY},
  {"bytes": int, **_NO_ARRAY},
  float,
  str,
  bool,
)
_LINE: JsonShape = {
  "round": int,
  "client": str,
  "type": str,
  "bytes": int,
  "down": {"bytes": int, "names": [str]},
  "structure?": str,
  "error?": {"reason": str},
  "records?": {"*": {"bytes": int, "entries": {"*": _ENTRY}, "rows?": ([int], None)}},
}
# Statuses of replies that the site itself made; a failure may be Flower's.
_ANSWERED = (Outcome.OK, Outcome.REJECTED, Outcome.UNUSED)
_ABSOLUTE = r"(?<![\w/])(~?/|[A-Za-z]:\\)[\w.-]+"  # a path

Found = dict[str, Any]


def audit(run: Path, client: str = "") -> Found:
  """Adds up what left, and looks for what should not have.

  Args:
    run: a run's folder, or a site's own.
    client: only this one; "" for all.

  Returns:
    Plain values: `clients`, a line for each; `names`, a line for everything that left, by message
    type, record, name and leaf; `down`, what came; `outside`, what is not on the list; `closed`,
    whether that is nothing.

  Raises:
    UserError: no record, a damaged one, or no such client.
  """
  config = _config(run)
  files = sorted(file for folder in _FOLDERS for file in run.glob(f"{folder}/{WIRE}"))
  if not files:
    raise UserError(
      f"{run}: expected {WIRE}, which clients write as they answer; got none. Give the folder of a"
      " run in one process, or a site's own: the server of other hosts has no such record"
    )
  by_client: dict[str, list[LogLine]] = {}
  for line in (line for file in files for line in _departures(file)):
    by_client.setdefault(line["client"], []).append(line)
  if client and client not in by_client:
    known = ", ".join(sorted(by_client)) or "nobody"
    raise UserError(f"--client: expected one of {known}; got {client!r}")
  by_client = {name: by_client[name] for name in sorted(by_client) if client in ("", name)}
  lines = [line for mine in by_client.values() for line in mine]
  outside = [*_outside(lines, config), *_missing(run, by_client, client)]
  return {
    "run": str(run),
    "files": [str(file) for file in files],
    "settings": {  # by which the list is longer or shorter
      "fed.strategy": config.fed.strategy,
      "uplink.select": config.uplink.select,
      "privacy.dp": config.privacy.dp,
      "privacy.clipping": config.privacy.clipping,
      "privacy.example_clip": config.privacy.example_clip,
      "secure.aggregation": config.secure.aggregation,
    },
    "clients": [_client(name, mine) for name, mine in by_client.items()],
    "names": _names(lines),
    "down": _down(lines),
    "outside": outside,
    "closed": not outside,
  }


def _config(run: Path) -> Experiment:
  try:
    return from_dict(parse((run / "config.json").read_bytes())["config"])
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(f"{run}: expected a run's folder with config.json; got: {error}") from error


def _departures(file: Path) -> Iterator[LogLine]:
  """The lines of a record, each with the leaves of its structure.

  Raises:
    UserError: a line that is not as our clients write it.
  """
  leaves: dict[str, Any] = {}
  for number, line in enumerate(read_lines(file), start=1):
    begins = "leaves" in line  # what a client's answers are made of
    if fault := find_mismatch(line, _STRUCTURE if begins else _LINE):
      raise UserError(
        f"{file}:{number}: expected what left a client, as it writes it; got {str(line)[:60]},"
        f" where {fault}. Somebody changed the record"
      )
    if begins:
      leaves[line["structure"]] = line["leaves"]
    else:
      yield line | {"leaves": leaves.get(line.get("structure", ""), [])}


def _records(line: LogLine) -> Mapping[str, Any]:
  return line.get("records", {})


def _client(name: str, lines: Sequence[LogLine]) -> Found:
  trained = [line["round"] for line in lines if line["type"] == disclosure_list.TRAIN]
  arrays = [array for line in lines for array in _arrays(line)]
  return {
    "client": name,
    "rounds": len(set(trained)),
    "messages": len(lines),
    "errors": sum("error" in line for line in lines),
    "repeated": len(trained) - len(set(trained)),
    "numbers": sum(_size(array) for array in arrays if array["dtype"].startswith("float")),
    "bytes": sum(line["bytes"] for line in lines),
  }


def _arrays(line: LogLine) -> Iterator[Mapping[str, Any]]:
  for record in _records(line).values():
    yield from filter(is_array, record["entries"].values())


def _size(array: Mapping[str, Any]) -> int:
  return math.prod(array["shape"])


def _names(lines: Sequence[LogLine]) -> list[Found]:
  """A line for every message type, record, entry and leaf; what is in something stands below it."""
  out: dict[tuple[str, ...], Found] = {}

  def add(*where: str, **numbers: int) -> Found:
    found = out.setdefault(where, {"where": list(where), "messages": 0})
    found["messages"] += 1
    for name, number in numbers.items():
      found[name] = found.get(name, 0) + number
    return found

  for line in lines:
    kind, records = line["type"], _records(line)
    add(kind, bytes=line["bytes"])
    add(kind, "header", bytes=line["bytes"] - sum(held["bytes"] for held in records.values()))
    if error := line.get("error"):
      _keep(add(kind, "error"), error["reason"])
    for record, held in records.items():
      add(kind, record, bytes=held["bytes"])
      for name, value in held["entries"].items():
        if is_array(value):
          found = add(kind, record, name, bytes=value["bytes"], numbers=_size(value))
          _keep(found, value["dtype"])
        else:
          _keep(add(kind, record, name), value)
      sent = held.get("rows") if disclosure_list.FLAT in held["entries"] else None
      for leaf, rows in zip(line["leaves"], sent or (), strict=False):
        numbers = rows * leaf["width"]
        sizes = {"bytes": 4 * numbers, "numbers": numbers, "rows": rows, "of": leaf["rows"]}
        add(kind, record, disclosure_list.FLAT, leaf["name"], **sizes)
  order = {where: number for number, where in enumerate(out)}
  places = {where: [order[where[: n + 1]] for n in range(len(where))] for where in out}
  return [out[where] for where in sorted(out, key=places.__getitem__)]


def _keep(found: Found, value: Any) -> None:
  """Adds a value to what is said of a name: the range of numbers, and the texts."""
  if type(value) in (int, float):
    low, high = found.get("range", (value, value))
    found["range"] = [min(low, value), max(high, value)]
    return
  text = value if isinstance(value, str) else describe_value(value)
  texts = found.setdefault("values", [])
  if text not in texts and len(texts) < _MOST_VALUES:
    texts.append(text)


def _down(lines: Sequence[LogLine]) -> Found:
  names = Counter(name for line in lines for name in line["down"]["names"])
  return {"bytes": sum(line["down"]["bytes"] for line in lines), "names": dict(names)}


def _outside(lines: Sequence[LogLine], config: Experiment) -> list[Found]:
  """What is not on the list, each once, with how often and where first."""
  out: dict[tuple[str, str], Found] = {}
  allowed = disclosure_list.allow_list(config)
  place = re.compile(rf"{_ABSOLUTE}|(?<!\w){re.escape(socket.gethostname())}(?!\w)")
  for line in lines:
    found = list(disclosure_list.not_allowed(line, allowed))
    if "error" in line and place.search(line["error"]["reason"]):
      found.append((f"{line['type']}  error", f"a path or host: {line['error']['reason']}"))
    for what, why in found:
      first = {"round": line["round"], "client": line["client"]}
      new = {"what": what, "why": why, "messages": 0, "first": first}
      out.setdefault((what, why), new)["messages"] += 1
  return list(out.values())


def _missing(run: Path, by_client: Mapping[str, Sequence[LogLine]], client: str) -> Iterator[Found]:
  """What the server of the same folder has had of a client in a round, and nobody noted.

  Sums, since a round may be asked for in several messages, and again after a crash.
  """
  noted: Counter[tuple[int, str]] = Counter()
  for name, mine in by_client.items():
    for each in mine:
      noted[each["round"], name] += each["bytes"]
  had: Counter[tuple[int, str]] = Counter()
  for line in read_clients(run):
    answered = parse_status(line["status"]).outcome in _ANSWERED
    if answered and client in ("", line["client"]):
      had[line["round"], line["client"]] += line["bytes_up"]
  for (round, name), size in had.items():
    if size > (found := noted[round, name]):
      why = f"the server had replies of {size - found:,} bytes that {WIRE} does not have"
      first = {"round": round, "client": name}
      yield {"what": disclosure_list.TRAIN, "why": why, "messages": 1, "first": first}
