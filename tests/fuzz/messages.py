"""Messages: what a site's app makes of a hostile server's, and a server of a hostile site's."""

import contextlib
import copy
import functools
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
from afspl_jax.federation.contracts import Rejected, SiteError, Update
from afspl_jax.federation.protocol import uplink, wire
from afspl_jax.federation.protocol.disclosure_log import DisclosureLog
from afspl_jax.federation.secure import messages
from afspl_jax.federation.secure.coordinator import (
  Aborted,
  Coordinator,
  Introduction,
  UnmaskQuestion,
)
from afspl_jax.federation.secure.crypto import Session
from afspl_jax.federation.secure.party import Party, PartyError, Rules
from afspl_jax.federation.secure.site import SecureSite
from afspl_jax.federation.secure.terms import Terms
from afspl_jax.federation.server.screening import screen
from afspl_jax.federation.server.sites import Sites
from afspl_jax.federation.transport.local_grid import LocalGrid
from afspl_jax.storage.client_status import one_line
from tests.fuzz.target import Target

_PARAMS = {"kernel": np.ones((2, 3), np.float32), "bias": np.zeros(2, np.float16)}
_STRUCTURE = wire.structure_digest(_PARAMS)
_SESSION = Session(b"s" * 16, 3)
_RULES = Rules(0.6)
_TERMS = Terms(_RULES, 16, 1.0, 100)
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
      entries[key] = {"bytes": _text(value)} if isinstance(value, bytes) else value
    records[name] = {"kind": kind, "entries": entries}
  return {"records": records} | more


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
        made = value["bytes"].encode("latin-1", "replace") if isinstance(value, dict) else value
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
    if masks and (kind == "train" or kind.endswith(("shares", "unmask"))):
      masks._parties[0] = _party(kind)
    app = SiteApp(_Trainer(), _PARAMS, {"lr": 1, "deep": {"a": [1, 2]}}, masking=masks)
    context = Context(1, 2, {"partition-id": 0}, RecordDict(), {})
    group = str(found[1].get("group")).encode(errors="replace").decode()
    message = _message(found[0], kind, group)
    record = DisclosureLog(folder, _PARAMS, sync=False)
    (folder / "wire.jsonl").unlink(missing_ok=True)
    record.add(message, Message(Error(1, "x"), reply_to=message), "elm")
    reply = app(message, context)
    record.add(message, reply, "elm")

  return Target(make, "message", read, (wire.WireError, PartyError, SiteError), cost=0.003)


@functools.cache
def _session() -> tuple[dict[str, Party], dict[int, Any], dict[int, bytes]]:
  """A site before each stage; what it and its neighbours have shown; what these sealed for it."""
  parties = {n: Party(_SESSION, _RULES) for n in range(4)}
  shown = {n: party.advertise() for n, party in parties.items()}
  before = {"query.secure_shares": copy.copy(parties[0])}
  of = {n: p.share(n, 4, {m: shown[m] for m in shown if m != n}) for n, p in parties.items()}
  sealed = {n: of[n][0] for n in range(1, 4)}
  before["train"] = copy.deepcopy(parties[0], _keys_of(parties[0]))
  parties[0].mask(np.zeros(9, np.uint32), sealed)
  return before | {"query.secure_unmask": parties[0]}, shown, sealed


def _keys_of(party: Party) -> dict[int, Any]:
  """What a deep copy shares with its original."""
  return {id(key): key for key in vars(party).values() if type(key).__module__.startswith("cryp")}


def _party(stage: str) -> Party:
  party = _session()[0][stage]
  return copy.deepcopy(party, _keys_of(party))


def _others() -> dict[int, Any]:
  return {n: keys for n, keys in _session()[1].items() if n}


def _first(stage: str) -> RecordDict:
  record = {
    "keys": lambda: messages.session_record(_SESSION),
    "shares": lambda: messages.introduction_record(_SESSION, Introduction(0, 4, _others())),
    "train": lambda: messages.forwarded_record(_SESSION, _session()[2]),
    "unmask": lambda: messages.question_record(_SESSION, UnmaskQuestion([1, 2], [3])),
  }[stage]()
  return RecordDict({messages.SECURE: record})


def _train(control: bool = False) -> RecordDict:
  config = ConfigRecord({wire.STRUCTURE: _STRUCTURE, wire.ROUND: 3, wire.CLIP: 1.0})
  content = RecordDict({wire.ARRAYS: wire.pack(_PARAMS), wire.CONFIG: config})
  if control:
    content[wire.CONTROL] = wire.pack(_PARAMS)
  return content


def _secure_train() -> RecordDict:
  return RecordDict({**_train(), **_first("train")})


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


def _under(make: Callable[[], Any]) -> Callable[[], RecordDict]:
  return lambda: RecordDict({messages.SECURE: make()})


def _introduce(answer: Message) -> None:
  shown = messages.read_keys(_said(answer))
  others = {f"site {n}": keys for n, keys in _others().items()}
  Coordinator(_SESSION, _RULES).introduce(others | {"elm": shown})


def _said(answer: Message) -> RecordDict:
  if answer.has_error():
    raise Rejected("an error")
  return answer.content


_QUESTION = UnmaskQuestion([1, 2], [3])
_PACKED = np.arange(8, dtype=np.uint8)
TARGETS = {
  "ask_train": asked("train", _train),
  "ask_controlled": asked("train", lambda: _train(control=True)),
  "ask_hello": asked("query.hello", _hello),
  "ask_keys": asked("query.secure_keys", lambda: _first("keys"), secure=True),
  "ask_shares": asked("query.secure_shares", lambda: _first("shares"), secure=True),
  "ask_secure_train": asked("train", _secure_train, secure=True),
  "ask_unmask": asked("query.secure_unmask", lambda: _first("unmask"), secure=True),
  "reply": answered(_reply, _screen(False)),
  "reply_sparse": answered(lambda: _reply(sparse=True), _screen(False)),
  "reply_controlled": answered(lambda: _reply(control=True), _screen(True)),
  "reply_hello": answered(_site, _greet),
  "reply_keys": answered(_under(lambda: messages.keys_record(_session()[1][0])), _introduce),
  "reply_sealed": answered(
    _under(lambda: messages.sealed_record(dict.fromkeys((1, 2, 3), b"x" * 48))),
    lambda answer: messages.read_sealed(_said(answer), (1, 2, 3)),
  ),
  "reply_masked": answered(
    lambda: messages.masked_content(_PACKED, _STRUCTURE),
    lambda answer: messages.read_masked(_said(answer), 8, _STRUCTURE),
  ),
  "reply_shares": answered(
    _under(lambda: messages.shares_record(dict.fromkeys(range(4), b"x" * 16))),
    lambda answer: messages.read_shares(_said(answer), 0, _QUESTION),
  ),
}
