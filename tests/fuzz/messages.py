"""Messages: what a site's app makes of a malicious server's, and a server of a malicious site's."""

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import (
  Array,
  ArrayRecord,
  ConfigRecord,
  Context,
  Error,
  Message,
  MetricRecord,
  RecordDict,
)
from flwr.clientapp import ClientApp

from afspl_jax.config.experiment import Fed
from afspl_jax.federation.client.client_app import SiteApp
from afspl_jax.federation.contracts import PartyError, Rejected, SiteError, Update
from afspl_jax.federation.protocol import uplink, wire
from afspl_jax.federation.protocol.disclosure_log import DisclosureLog
from afspl_jax.federation.protocol.image_statistics import (
  ImageStatistics,
  image_statistics,
  statistics_content,
)
from afspl_jax.federation.secure import messages
from afspl_jax.federation.secure.coordinator import Aborted, Coordinator
from afspl_jax.federation.secure.site import SecureSite
from afspl_jax.federation.secure.terms import Terms
from afspl_jax.federation.server.routing import site_routing
from afspl_jax.federation.server.screening import screen
from afspl_jax.federation.server.site_statistics import screen_statistics
from afspl_jax.federation.server.sites import Sites
from afspl_jax.federation.transport.local_grid import LocalGrid
from afspl_jax.storage.client_status import one_line
from tests.fuzz.secure_session import RULES, SESSION, first_record, party_before, session
from tests.fuzz.target import Target

_PARAMS = {"kernel": np.ones((2, 3), np.float32), "bias": np.zeros(2, np.float16)}
_STRUCTURE = wire.structure_digest(_PARAMS)
_TERMS = Terms(RULES, 16, 1.0, 100)
_KINDS = {"arrays": ArrayRecord, "metrics": MetricRecord, "config": ConfigRecord}


class _Trainer:
  def site(self, client: int) -> str:
    return "elm"

  def num_examples(self, client: int) -> int:
    return 7

  def train_cohort(
    self, params: Any, clients: Sequence[int], round: int, *, control: Any = None
  ) -> dict[int, Update]:
    return {
      k: Update("elm", params, uplink.everywhere(params), 7, {"loss": 0.5}, control)
      for k in clients
    }


def _written(content: RecordDict, **more: Any) -> dict[str, Any]:
  """A message as JSON, so that its values can be changed like any other's."""
  records = {}
  for name, record in content.items():
    kind = next(kind for kind, cls in _KINDS.items() if type(record) is cls)
    entries = {}
    for key, value in record.items():
      if isinstance(value, Array):
        value = {"dtype": value.dtype, "shape": list(value.shape), "data": _text(value.data)}
      entries[key] = _as_json(value)
    records[name] = {"kind": kind, "entries": entries}
  return {"records": records} | more


def _as_json(value: Any) -> Any:
  if isinstance(value, list):
    return [_as_json(item) for item in value]
  return {"bytes": _text(value)} if isinstance(value, bytes) else value


def _of_json(value: Any) -> Any:
  if isinstance(value, list):
    return [_of_json(item) for item in value]
  return value["bytes"].encode("latin-1", "replace") if isinstance(value, dict) else value


def _text(data: bytes) -> str:
  return data.decode("latin-1")


def _content(file: Path) -> tuple[RecordDict, dict[str, Any]] | None:
  """The message of a file as far as Flower could have brought it; None of what is no message."""
  try:
    said = json.loads(file.read_bytes())
    described = dict(said["records"])
  except (ValueError, TypeError, KeyError, RecursionError):
    return None
  content = RecordDict()
  for name, record in described.items():
    with contextlib.suppress(Exception):  # Flower's own, before any code of ours
      alone = RecordDict({name: _record(**record)})
      wire.serialized(alone)  # it would not travel
      content[name] = alone[name]
  return content, said


def _record(kind: str, entries: dict[str, Any]) -> Any:
  out = _KINDS[kind]()
  for name, value in entries.items():
    with contextlib.suppress(Exception):
      if kind == "arrays":
        data = value["data"].encode("latin-1", "replace")
        made = Array(str(value["dtype"]), tuple(value["shape"]), "numpy.ndarray", data)
      else:
        made = _of_json(value)
      alone = _KINDS[kind]({name: made})
      wire.serialized(alone)
      out[name] = alone[name]
  return out


def _message(content: RecordDict, kind: str, group: Any = "3") -> Message:
  LocalGrid(ClientApp(), 0)  # a message takes its run and sender from the process
  return Message(content, 2, kind, group_id=str(group))


def asked(kind: str, content: Callable[[], RecordDict], secure: bool = False) -> Target:
  """A message that a site gets."""

  def make(folder: Path) -> None:
    (folder / "message").write_text(json.dumps(_written(content(), group="3")))

  def read(folder: Path) -> None:
    found = _content(folder / "message")
    if found is None:
      return
    masks = SecureSite(_TERMS) if secure else None
    if masks and (kind == "train" or kind.endswith(("shares", "confirm", "unmask"))):
      masks._parties[0] = party_before(kind)
    terms = {"lr": 1, "deep": {"a": [1, 2]}}
    app = SiteApp(_Trainer(), _PARAMS, terms, masking=masks, statistics=_statistics)
    context = Context(1, 2, {"partition-id": 0}, RecordDict(), {})
    group = str(found[1].get("group")).encode(errors="replace").decode()
    message = _message(found[0], kind, group)
    record = DisclosureLog(folder, _PARAMS, sync=False)
    (folder / "wire.jsonl").unlink(missing_ok=True)
    record.add(message, Message(Error(1, "x"), reply_to=message), "elm")
    reply = app(message, context)
    record.add(message, reply, "elm")

  return Target(make, "message", read, (wire.WireError, PartyError, SiteError), cost=0.003)


def _statistics(client: int) -> ImageStatistics:
  return image_statistics(np.random.default_rng(client).normal(size=(9, 3)))


def _train(control: bool = False) -> RecordDict:
  config = ConfigRecord({wire.STRUCTURE: _STRUCTURE, wire.ROUND: 3, wire.CLIP: 1.0})
  content = RecordDict({wire.ARRAYS: wire.pack(_PARAMS), wire.CONFIG: config})
  if control:
    content[wire.CONTROL] = wire.pack(_PARAMS)
  return content


def _secure_train() -> RecordDict:
  return RecordDict({**_train(), **first_record("train")})


def _hello() -> RecordDict:
  terms = wire.terms(_PARAMS, {"lr": 1, "deep": {"a": [1, 2]}})
  return RecordDict({wire.CONFIG: ConfigRecord({wire.TERMS: json.dumps(terms)})})


def answered(content: Callable[[], RecordDict], read: Callable[[Message], object]) -> Target:
  """A message that the server gets."""

  def make(folder: Path) -> None:
    (folder / "message").write_text(json.dumps(_written(content(), error=None)))

  def look(folder: Path) -> None:
    found = _content(folder / "message")
    if found is None:
      return
    error = found[1].get("error")
    sent = _message(RecordDict(), "train")
    try:
      said = found[0] if error is None else Error(1, str(error).encode(errors="replace").decode())
      reply = Message(said, reply_to=sent)
    except (ValueError, TypeError):
      return
    try:
      read(reply)
    except Rejected as why:
      assert len(one_line(str(why))) <= 300
      raise

  return Target(make, "message", look, (Rejected, wire.WireError, Aborted), cost=0.001)


def _reply(sparse: bool = False, control: bool = False) -> RecordDict:
  masks = {"kernel": np.array([True, False]), "bias": np.array([True])}
  content = RecordDict({wire.ARRAYS: wire.pack(_PARAMS, masks if sparse else None)})
  content[wire.METRICS] = MetricRecord({wire.NUM_EXAMPLES: 7, "loss": 0.5})
  content[wire.CONFIG] = ConfigRecord({wire.STRUCTURE: _STRUCTURE})
  if control:
    content[wire.CONTROL] = wire.pack(_PARAMS)
  return content


def _screen(controlled: bool) -> Callable[[Message], None]:
  def read(answer: Message) -> None:
    fed = Fed(max_examples=100, max_update_norm=1.0)
    reply = screen("elm", answer, _PARAMS, _STRUCTURE, fed, controlled)
    assert all(np.isfinite(leaf).all() for leaf in reply.params.values())
    assert 0 < reply.num_examples <= 100 and all(map(np.isfinite, reply.metrics.values()))

  return read


def _site() -> RecordDict:
  return RecordDict({wire.CONFIG: ConfigRecord({wire.SITE: "elm", wire.NUM_EXAMPLES: 7})})


def _greet(answer: Message) -> None:
  name, number = Sites(LocalGrid(ClientApp(), 0), {}, 100)._read(2, answer)
  assert 0 < len(name) <= 80 and name.isprintable() and 0 < number <= 100


def _route(answer: Message) -> None:
  found = screen_statistics(answer, 3, 100)
  routing = site_routing({"elm": found, "oak": _statistics(1)}, 2, 0)
  assert all(np.isfinite(leaf).all() for leaf in routing)


def _under(make: Callable[[], Any]) -> Callable[[], RecordDict]:
  return lambda: RecordDict({messages.SECURE: make()})


def _introduce(answer: Message) -> None:
  shown = messages.read_keys(_said(answer), "elm")
  others = {f"site {n}": member for n, member in session()[1].items() if n}
  Coordinator(SESSION, RULES).introduce(others | {"elm": shown})


def _said(answer: Message) -> RecordDict:
  if answer.has_error():
    raise Rejected("an error")
  return answer.content


_PACKED = np.arange(8, dtype=np.uint8)
TARGETS = {
  "ask_train": asked("train", _train),
  "ask_controlled": asked("train", lambda: _train(control=True)),
  "ask_hello": asked("query.hello", _hello),
  "ask_statistics": asked("query.statistics", lambda: RecordDict()),
  "ask_keys": asked("query.secure_keys", lambda: first_record("keys"), secure=True),
  "ask_shares": asked("query.secure_shares", lambda: first_record("shares"), secure=True),
  "ask_secure_train": asked("train", _secure_train, secure=True),
  "ask_confirm": asked("query.secure_confirm", lambda: first_record("confirm"), secure=True),
  "ask_unmask": asked("query.secure_unmask", lambda: first_record("unmask"), secure=True),
  "reply": answered(_reply, _screen(False)),
  "reply_sparse": answered(lambda: _reply(sparse=True), _screen(False)),
  "reply_controlled": answered(lambda: _reply(control=True), _screen(True)),
  "reply_hello": answered(_site, _greet),
  "reply_statistics": answered(lambda: statistics_content(_statistics(0)), _route),
  "reply_keys": answered(_under(lambda: messages.keys_record(session()[1][0])), _introduce),
  "reply_sealed": answered(
    _under(lambda: messages.sealed_record(dict.fromkeys((1, 2, 3), b"x" * 48))),
    lambda answer: messages.read_sealed(_said(answer), (1, 2, 3)),
  ),
  "reply_signature": answered(
    _under(lambda: messages.signature_record(session()[2][1][1])),
    lambda answer: messages.read_signature(_said(answer)),
  ),
  "reply_masked": answered(
    lambda: messages.masked_content(_PACKED, _STRUCTURE, session()[2][1][1]),
    lambda answer: messages.read_masked(_said(answer), 8, _STRUCTURE),
  ),
  "reply_shares": answered(
    _under(lambda: messages.shares_record(dict.fromkeys(range(4), b"x" * 16))),
    lambda answer: messages.read_shares(_said(answer), range(4)),
  ),
}
