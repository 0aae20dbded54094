"""The disclosure log: a line of wire.jsonl for every outgoing message of a client.

A line is written before its message is sent, so the log may have one line too many, never one too
few. Lines are never removed: metrics.jsonl drops a round that is repeated after a crash, but its
messages were sent, and the second reply of the round is a second line.

A line has the round, the client, the message type, the time, the bytes as Flower sends them, and
their content: every record with its size, every entry by name with the value of a number or short
text, and the size of anything else. For packed leaves it has the number of rows that were sent.
`sha256` is the id under which Flower sends the message: a hash of its bytes, which include the ids
of its parts. Anyone who kept a message can check whether it is the one in the log.
"""

import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Error, Message
from flwr.clientapp import ClientApp

from afspl_jax.errors import UserError
from afspl_jax.federation.contracts import CLIENT_RAISED, CohortApp, attempt
from afspl_jax.federation.protocol import uplink, wire
from afspl_jax.federation.protocol.disclosure_list import ERROR_TYPES
from afspl_jax.storage.atomic_files import append_text
from afspl_jax.storage.disk_errors import disk_error
from afspl_jax.storage.run_lines import WIRE
from afspl_jax.types import Params

_LONGEST_TEXT = 200  # characters of a text that are kept
_LONGEST_NUMBER = 20  # digits of a number in a text; Python parses no int of 4300

_LOG = logging.getLogger(__name__)


class LoggedApp(ClientApp):
  """Logs every reply of an app, and removes error texts that might have private data.

  Args:
    app: answers; its errors become error replies here, with the text if the allow-list has the
      error type.
    log: gets a line for every reply.
    site: the name of the client with an index.
  """

  def __init__(
    self,
    app: Callable[[Message, Context], Message],
    log: "DisclosureLog",
    site: Callable[[int], str],
  ):
    super().__init__()
    self._app, self._log, self._site = app, log, site

  def __call__(self, message: Message, context: Context) -> Message:
    """The reply, which is in the log.

    Raises:
      UserError: it cannot be logged, and so must not be sent; or the app raised it.
    """
    return self._logged(message, context, attempt(self._app, message, context))

  def answer_together(self, requests: Sequence[tuple[Message, Context]]) -> Iterator[Message]:
    """The replies to messages that ask to train; each is logged before the next one is made.

    Raises:
      UserError: one cannot be logged, and so must not be sent; or the app raised it.
    """
    if isinstance(self._app, CohortApp):
      answers = self._app.answer_together(requests)
    else:
      answers = (attempt(self._app, *request) for request in requests)
    for request, answer in zip(requests, answers, strict=True):
      yield self._logged(*request, answer)

  def _logged(self, message: Message, context: Context, answer: Message | Exception) -> Message:
    if isinstance(answer, UserError):
      raise answer  # about this host, for its user: the process ends
    reply = (
      Message(_error_reply(answer), reply_to=message) if isinstance(answer, Exception) else answer
    )
    self._log.add(message, reply, self._name(context))
    return reply

  def _name(self, context: Context) -> str:
    index = context.node_config.get("partition-id")
    try:
      return self._site(int(index))
    except (TypeError, ValueError, IndexError):
      return f"partition {index}"  # it was rejected


class DisclosureLog:
  """The file wire.jsonl in the folder of a run or a site.

  Args:
    folder: the folder.
    template: pytree with the shapes and dtypes that are exchanged.
    sync: whether a line must be on disk before its message is sent.
  """

  def __init__(self, folder: Path, template: Params, *, sync: bool):
    self._file, self._sync = folder / WIRE, sync
    self._leaves = [
      (name, math.prod(uplink.mask_shape(shape)), shape[-1] if shape else 1, dtype)
      for name, shape, dtype in wire.spec(template)
    ]
    self._structure = wire.structure_digest(template)
    names = ("name", "rows", "width", "dtype")
    leaves = [dict(zip(names, leaf, strict=True)) for leaf in self._leaves]
    # Written before the first line: a run that is started again with nothing to do writes none.
    self._head: dict[str, Any] | None = {"structure": self._structure, "leaves": leaves}
    self._drop_cut_line()

  def add(self, message: Message, reply: Message, client: str) -> None:
    """Logs a client's reply to a message.

    Raises:
      UserError: the disk refuses.
    """
    config = message.content.config_records.get(wire.CONFIG, {}) if message.has_content() else {}
    group = message.metadata.group_id  # the round, in messages that have no other
    is_round = group.isdecimal() and len(group) < _LONGEST_NUMBER
    round = config.get(wire.ROUND, int(group) if is_round else 0)
    line: dict[str, Any] = {
      "round": round if isinstance(round, int) else 0,
      "client": client,
      "type": reply.metadata.message_type,
      "time": float(f"{reply.metadata.created_at:.3f}"),
    }
    objects = wire.serialized(reply)
    line["bytes"], line["sha256"] = sum(map(len, objects.values())), next(reversed(objects))
    if reply.has_error():
      line["error"] = {"code": reply.error.code, "reason": reply.error.reason}
    else:
      line["structure"] = self._structure
      line["records"] = {
        name: self._described(record, objects) for name, record in reply.content.items()
      }
    line["down"] = _received(message)
    if self._head is not None:
      self._append(self._head)
      self._head = None
    self._append(line)

  def _described(self, record: Any, left: dict[str, bytes]) -> dict[str, Any]:
    """A record's description; removes its objects from `left`, since equal objects travel once."""
    size = sum(len(left.pop(object_id, b"")) for object_id in wire.serialized(record))
    out: dict[str, Any] = {"bytes": size}
    if not isinstance(record, ArrayRecord):
      return out | {"entries": {name: _value(value) for name, value in record.items()}}
    out["entries"] = {
      name: {"dtype": array.dtype, "shape": list(array.shape), "bytes": len(array.data)}
      for name, array in record.items()
    }
    return out | ({"rows": self._rows(record)} if wire.FLAT in record else {})

  def _rows(self, record: ArrayRecord) -> list[int] | None:
    """The number of rows of each leaf that were sent; None if the bits do not fit our leaves."""
    sizes = [rows for _, rows, *_ in self._leaves]
    if wire.ROWS not in record:
      return sizes
    bits = np.unpackbits(record[wire.ROWS].numpy())
    if bits.size != 8 * -(-sum(sizes) // 8):
      return None
    *parts, _ = np.split(bits, np.cumsum(sizes, dtype=int))
    return [int(part.sum()) for part in parts]

  def _drop_cut_line(self) -> None:
    """Removes a last line that a killed process did not finish: its message was not sent."""
    try:
      if self._file.exists():
        os.truncate(self._file, self._file.read_bytes().rfind(b"\n") + 1)
    except OSError as error:
      raise self._write_error(error) from error

  def _append(self, line: dict[str, Any]) -> None:
    try:
      append_text(self._file, json.dumps(line) + "\n", sync=self._sync)
    except OSError as error:
      raise self._write_error(error) from error

  def _write_error(self, error: OSError) -> UserError:
    return disk_error(self._file, "to it", error, more="Nothing is sent that is not logged there. ")


def _error_reply(error: Exception) -> Error:
  """What the server may know about an error."""
  kind, text = type(error).__name__, str(error)
  if kind not in ERROR_TYPES:
    # Its text may quote a caption, an id or a path.
    _LOG.error("an error was sent without its text", exc_info=error)
    kind, text = "SiteError", f"{kind}; the site's own log has the rest"
  else:
    _LOG.info("an error was sent", exc_info=error)
  return Error(CLIENT_RAISED, f"{kind}: {text}")


def _value(value: Any) -> Any:
  """A value of a record, as JSON of bounded size."""
  if isinstance(value, bytes):
    return {"bytes": len(value)}
  if isinstance(value, list):
    return {"list": len(value), "of": type(value[0]).__name__ if value else "nothing"}
  if isinstance(value, str) and len(value) > _LONGEST_TEXT:
    return {"text": value[:_LONGEST_TEXT], "length": len(value)}
  if isinstance(value, float) and not math.isfinite(value):
    return {"number": str(value)}
  return value


def _received(message: Message) -> dict[str, Any]:
  """The incoming message: the bytes of its arrays, and the names of its entries."""
  records = message.content if message.has_content() else {}
  names = [f"{record}/{name}" for record, held in records.items() for name in held]
  arrays = [a for held in records.values() if isinstance(held, ArrayRecord) for a in held.values()]
  return {"bytes": sum(len(array.data) for array in arrays), "names": names}
