"""Audits the outgoing messages of a run's clients: compares their log with the allow-list."""

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
from afspl_jax.storage.json_text import parse_json
from afspl_jax.storage.run_lines import WIRE, read_clients, read_lines

_FOLDERS = (".", "sites", "nodes/*")  # that hold logs: of one process, of local-net, of `flwr run`
_MOST_VALUES = 1000  # distinct texts that are kept for one name
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

JsonObject = dict[str, Any]


def audit_run(run: Path, client: str = "") -> JsonObject:
  """Adds up the outgoing messages of clients, and finds values that are not on the allow-list.

  Args:
    run: the folder of a run, or of one site.
    client: audits only this client; "" audits all.

  Returns:
    JSON values: `clients`, a line for each client; `names`, a line for each outgoing value, by
    message type, record, name and leaf; `down`, the received messages; `outside`, the values that
    are not on the allow-list; `closed`, whether there is none.

  Raises:
    UserError: the log is missing or damaged, or the client is unknown.
  """
  config = _config(run)
  files = sorted(file for folder in _FOLDERS for file in run.glob(f"{folder}/{WIRE}"))
  if not files:
    raise UserError(
      f"{run}: expected {WIRE}, which clients write when they reply; got none. Give the folder of a"
      " run in one process, or a site's own: a server of remote sites has no such log"
    )
  by_client: dict[str, list[LogLine]] = {}
  for line in (line for file in files for line in _messages(file)):
    by_client.setdefault(line["client"], []).append(line)
  if client and client not in by_client:
    known = ", ".join(sorted(by_client)) or "no client"
    raise UserError(f"--client: expected one of {known}; got {client!r}")
  by_client = {name: by_client[name] for name in sorted(by_client) if client in ("", name)}
  lines = [line for its_lines in by_client.values() for line in its_lines]
  outside = [*_outside(lines, config), *_missing(run, by_client, client)]
  return {
    "run": str(run),
    "files": [str(file) for file in files],
    "settings": {  # that the allow-list depends on
      "fed.strategy": config.fed.strategy,
      "prompter.routing": config.prompter.routing,
      "uplink.select": config.uplink.select,
      "privacy.dp": config.privacy.dp,
      "privacy.clipping": config.privacy.clipping,
      "privacy.example_clip": config.privacy.example_clip,
      "secure.aggregation": config.secure.aggregation,
    },
    "clients": [_client(name, its_lines) for name, its_lines in by_client.items()],
    "names": _disclosures(lines),
    "down": _down(lines),
    "outside": outside,
    "closed": not outside,
  }


def _config(run: Path) -> Experiment:
  try:
    return from_dict(parse_json((run / "config.json").read_bytes())["config"])
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(f"{run}: expected a run folder with config.json; got: {error}") from error


def _messages(file: Path) -> Iterator[LogLine]:
  """The messages of a log, each with the leaves of its structure.

  Raises:
    UserError: a line does not have the form that clients write.
  """
  leaves: dict[str, Any] = {}
  for number, line in enumerate(read_lines(file), start=1):
    is_structure = "leaves" in line  # describes the arrays of the messages that follow
    if error := find_mismatch(line, _STRUCTURE if is_structure else _LINE):
      raise UserError(
        f"{file}:{number}: expected an outgoing message as a client logs it; got"
        f" {str(line)[:60]}, where {error}. The log was changed"
      )
    if is_structure:
      leaves[line["structure"]] = line["leaves"]
    else:
      yield line | {"leaves": leaves.get(line.get("structure", ""), [])}


def _records(line: LogLine) -> Mapping[str, Any]:
  return line.get("records", {})


def _client(name: str, lines: Sequence[LogLine]) -> JsonObject:
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


def _disclosures(lines: Sequence[LogLine]) -> list[JsonObject]:
  """A line for each message type, record, entry and leaf; parts follow what contains them."""
  found = _Disclosures()
  for line in lines:
    found.add_message(line)
  return found.in_order()


class _Disclosures:
  """Adds up outgoing messages by message type, record, entry and leaf."""

  def __init__(self) -> None:
    self._lines: dict[tuple[str, ...], JsonObject] = {}

  def add_message(self, line: LogLine) -> None:
    """Adds one message of the disclosure log."""
    kind, records = line["type"], _records(line)
    self._add(kind, bytes=line["bytes"])
    header = line["bytes"] - sum(record["bytes"] for record in records.values())
    self._add(kind, "header", bytes=header)
    if error := line.get("error"):
      self._add_value(error["reason"], kind, "error")
    for name, record in records.items():
      self._add(kind, name, bytes=record["bytes"])
      self._add_entries(record, kind, name)
      rows = record.get("rows") if disclosure_list.FLAT in record["entries"] else None
      for leaf, sent in zip(line["leaves"], rows or (), strict=False):
        numbers = sent * leaf["width"]
        sizes = {"bytes": 4 * numbers, "numbers": numbers, "rows": sent, "of": leaf["rows"]}
        self._add(kind, name, disclosure_list.FLAT, leaf["name"], **sizes)

  def in_order(self) -> list[JsonObject]:
    """The lines in the order of their first message, parts after what contains them."""
    order = {where: number for number, where in enumerate(self._lines)}
    places = {where: [order[where[: n + 1]] for n in range(len(where))] for where in order}
    return [self._lines[where] for where in sorted(order, key=places.__getitem__)]

  def _add_entries(self, record: Mapping[str, Any], *where: str) -> None:
    for name, value in record["entries"].items():
      if is_array(value):
        sizes = {"bytes": value["bytes"], "numbers": _size(value)}
        self._add_value(value["dtype"], *where, name, **sizes)
      else:
        self._add_value(value, *where, name)

  def _add(self, *where: str, **numbers: int) -> JsonObject:
    line = self._lines.setdefault(where, {"where": list(where), "messages": 0})
    line["messages"] += 1
    for name, number in numbers.items():
      line[name] = line.get(name, 0) + number
    return line

  def _add_value(self, value: Any, *where: str, **numbers: int) -> None:
    """Adds a value to the range of numbers, or to the distinct texts."""
    line = self._add(*where, **numbers)
    if type(value) in (int, float):
      low, high = line.get("range", (value, value))
      line["range"] = [min(low, value), max(high, value)]
      return
    text = value if isinstance(value, str) else describe_value(value)
    texts = line.setdefault("values", [])
    if text not in texts and len(texts) < _MOST_VALUES:
      texts.append(text)


def _down(lines: Sequence[LogLine]) -> JsonObject:
  names = Counter(name for line in lines for name in line["down"]["names"])
  return {"bytes": sum(line["down"]["bytes"] for line in lines), "names": dict(names)}


def _outside(lines: Sequence[LogLine], config: Experiment) -> list[JsonObject]:
  """Values that are not on the allow-list: each once, with its count and first message."""
  out: dict[tuple[str, str], JsonObject] = {}
  allowed = disclosure_list.allow_list(config)
  place = re.compile(rf"{_ABSOLUTE}|(?<!\w){re.escape(socket.gethostname())}(?!\w)")
  for line in lines:
    found = list(disclosure_list.not_allowed(line, allowed, config.fed))
    if "error" in line and place.search(line["error"]["reason"]):
      found.append((f"{line['type']}  error", f"a path or host: {line['error']['reason']}"))
    for what, why in found:
      first = {"round": line["round"], "client": line["client"]}
      new = {"what": what, "why": why, "messages": 0, "first": first}
      out.setdefault((what, why), new)["messages"] += 1
  return list(out.values())


def _missing(
  run: Path, by_client: Mapping[str, Sequence[LogLine]], client: str
) -> Iterator[JsonObject]:
  """Replies that the server of the same folder received, but that are not in the log.

  Compares sums, because a round can have several messages, and can be repeated after a crash.
  """
  logged: Counter[tuple[int, str]] = Counter()
  for name, its_lines in by_client.items():
    for each in its_lines:
      logged[each["round"], name] += each["bytes"]
  received: Counter[tuple[int, str]] = Counter()
  for line in read_clients(run):
    answered = parse_status(line["status"]).outcome in _ANSWERED
    if answered and client in ("", line["client"]):
      received[line["round"], line["client"]] += line["bytes_up"]
  for (round, name), size in received.items():
    if size > (found := logged[round, name]):
      why = f"the server received {size - found:,} bytes that {WIRE} does not have"
      first = {"round": round, "client": name}
      yield {"what": disclosure_list.TRAIN, "why": why, "messages": 1, "first": first}
