"""What leaves a client, noted where it leaves: a line of wire.jsonl for every answer.

The line is written before the answer is sent, so there may be a line more than what left, never
one less. It is never dropped: metrics.jsonl forgets a round that is repeated after a crash, but
what left has left, and the round's second answer is a second line.

A line has the answer's round, client, message type, time, bytes as Flower sends them, and what they
are: every record with its bytes and every entry's name, with the value of a number or short text,
and the size of all else. Of the packed leaves it has how many rows of each were sent. `sha256` is
the id under which Flower sends the message: the hash of its bytes, in which the ids of its parts
stand, so that who kept a message can be shown that it is, or is not, the one that is noted here.
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
from afspl_jax.federation.protocol.disclosure_list import FAULTS
from afspl_jax.storage.atomic_files import append_text
from afspl_jax.storage.run_lines import WIRE
from afspl_jax.types import Params

_LONGEST_TEXT = 200  # characters of a text that are kept
_LONGEST_NUMBER = 20  # digits of one in a text; of 4300 Python makes no int

_LOG = logging.getLogger(__name__)


class LoggedApp(ClientApp):
  """Answers as an app does, notes every answer, and hides what an error's text might tell.

  Args:
    app: answers; what it raises becomes an error reply here, and its text leaves only if its kind
      is on the closed list.
    record: takes the notes.
    site: the name of the client with an index.
  """

  def __init__(
    self,
    app: Callable[[Message, Context], Message],
    record: "DisclosureLog",
    site: Callable[[int], str],
  ):
    super().__init__()
    self._app, self._record, self._site = app, record, site

  def __call__(self, message: Message, context: Context) -> Message:
    """The answer.

    Raises:
      UserError: it cannot be noted, and so must not leave.
    """
    return self._note(message, context, attempt(self._app, message, context))

  def answer_together(self, requests: Sequence[tuple[Message, Context]]) -> Iterator[Message]:
    """The answers to messages that ask to train; each is noted before the next one is made.

    Raises:
      UserError: one cannot be noted, and so must not leave.
    """
    if isinstance(self._app, CohortApp):
      answers = self._app.answer_together(requests)
    else:
      answers = (attempt(self._app, *request) for request in requests)
    for request, answer in zip(requests, answers, strict=True):
      yield self._note(*request, answer)

  def _note(self, message: Message, context: Context, answer: Message | Exception) -> Message:
    reply = Message(_fault(answer), reply_to=message) if isinstance(answer, Exception) else answer
    self._record.add(message, reply, self._name(context))
    return reply

  def _name(self, context: Context) -> str:
    index = context.node_config.get("partition-id")
    try:
      return self._site(int(index))
    except (TypeError, ValueError, IndexError):
      return f"partition {index}"  # which has been refused


class DisclosureLog:
  """The file wire.jsonl of a client's folder.

  Args:
    folder: of the run, or of the site.
    template: pytree with the shapes and dtypes that are exchanged.
    sync: whether a line is on disk when it is written, and not only with the system.
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
    # Before the first line: a run that is started again and has nothing left to do writes none.
    self._head: dict[str, Any] | None = {"structure": self._structure, "leaves": leaves}
    self._drop_half_a_line()

  def add(self, message: Message, reply: Message, client: str) -> None:
    """Notes that a client answers a message.

    Raises:
      UserError: the disk refuses.
    """
    config = message.content.config_records.get(wire.CONFIG, {}) if message.has_content() else {}
    group = message.metadata.group_id  # the round's number, in messages that do not say it
    told = group.isdecimal() and len(group) < _LONGEST_NUMBER
    round = config.get(wire.ROUND, int(group) if told else 0)
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
    """A record's note; takes its objects out of `left`, since equal ones travel once."""
    size = sum(len(left.pop(object_id, b"")) for object_id in wire.serialized(record))
    out: dict[str, Any] = {"bytes": size}
    if not isinstance(record, ArrayRecord):
      return out | {"entries": {name: _noted(value) for name, value in record.items()}}
    out["entries"] = {
      name: {"dtype": array.dtype, "shape": list(array.shape), "bytes": len(array.data)}
      for name, array in record.items()
    }
    return out | ({"rows": self._rows(record)} if wire.FLAT in record else {})

  def _rows(self, record: ArrayRecord) -> list[int] | None:
    """How many rows of each leaf were sent; None where the bits are not those of our leaves."""
    sizes = [rows for _, rows, *_ in self._leaves]
    if wire.ROWS not in record:
      return sizes
    bits = np.unpackbits(record[wire.ROWS].numpy())
    if bits.size != 8 * -(-sum(sizes) // 8):
      return None
    *parts, _ = np.split(bits, np.cumsum(sizes, dtype=int))
    return [int(part.sum()) for part in parts]

  def _drop_half_a_line(self) -> None:
    """Cuts what a killed process wrote of its last line: what it was about has not left."""
    try:
      if self._file.exists():
        os.truncate(self._file, self._file.read_bytes().rfind(b"\n") + 1)
    except OSError as error:
      raise self._refused(error) from error

  def _append(self, line: dict[str, Any]) -> None:
    try:
      append_text(self._file, json.dumps(line) + "\n", sync=self._sync)
    except OSError as error:
      raise self._refused(error) from error

  def _refused(self, error: OSError) -> UserError:
    return UserError(
      f"{self._file}: expected to write to it; got: {error}. Nothing leaves that is not noted"
      " there: free the disk and start the same command again to go on"
    )


def _fault(error: Exception) -> Error:
  """What the server may know of an error."""
  kind, text = type(error).__name__, str(error)
  if kind not in FAULTS:
    # Its text may quote a caption, an id or a path.
    _LOG.error("an error was answered with its kind alone", exc_info=error)
    kind, text = "SiteError", f"{kind}; the site's own log has the rest"
  else:
    _LOG.info("an error was answered", exc_info=error)
  return Error(CLIENT_RAISED, f"{kind}: {text}")


def _noted(value: Any) -> Any:
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
  """What came down: the bytes of its arrays, and the names of all that is in it."""
  records = message.content if message.has_content() else {}
  names = [f"{record}/{name}" for record, held in records.items() for name in held]
  arrays = [a for held in records.values() if isinstance(held, ArrayRecord) for a in held.values()]
  return {"bytes": sum(len(array.data) for array in arrays), "names": names}
