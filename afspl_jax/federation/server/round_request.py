"""A round's request to its sites, and the lines about them in clients.jsonl."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from flwr.app import RecordDict

from afspl_jax.errors import Stopped
from afspl_jax.federation.protocol import wire
from afspl_jax.federation.server.exchange import Answer
from afspl_jax.storage.client_status import Outcome, Status
from afspl_jax.types import Params


@dataclass
class ClientLine:
  """A line of clients.jsonl: one client's part in a round."""

  round: int
  client: str
  status: Status = Status(Outcome.OK)  # noqa: RUF009 - it cannot be changed
  num_examples: int | None = None  # of a valid update
  loss: float | None = None
  bytes_up: int = 0
  seconds: float | None = None  # from sending to arrival

  def add(self, answer: Answer) -> None:
    """Counts the bytes and the time of an answer."""
    if answer.message is not None:
      self.bytes_up += wire.record_bytes(answer.message)
    self.seconds = float(f"{(self.seconds or 0.0) + answer.seconds:.3f}")

  def as_json(self) -> dict[str, Any]:
    """The line as it is written."""
    line = {
      "round": self.round,
      "client": self.client,
      "num_examples": self.num_examples,
      "loss": self.loss,
      "bytes_up": self.bytes_up,
    }
    return (
      line
      | ({} if self.seconds is None else {"seconds": self.seconds})
      | {"status": str(self.status)}
    )


def late_lines(round: int, late: Iterable[tuple[str, int, Answer]]) -> list[ClientLine]:
  """Lines about answers to earlier rounds that came in this one."""
  lines = []
  for site, earlier, answer in late:
    lines.append(ClientLine(earlier, site, Status(Outcome.LATE, f"discarded in round {round}")))
    lines[-1].add(answer)
  return lines


class Chosen(NamedTuple):
  """The sites of a round."""

  nodes: dict[str, int]  # node ids of those that train, by name, sorted
  absent: dict[str, Status]  # sites that would have been chosen, and why they are not
  late: list[tuple[str, int, Answer]]  # replies to earlier rounds that have come since

  def lines(self, round: int) -> list[ClientLine]:
    """Lines about the sites that get no request."""
    absent = [ClientLine(round, site, status) for site, status in self.absent.items()]
    return late_lines(round, self.late) + absent


class TrainRequest(NamedTuple):
  """A round's request to its sites."""

  round: int
  params: Params  # the global params
  chosen: Chosen
  content: RecordDict  # of the messages
  bound: float | None  # on an update's norm, if the round has one
  fixed: tuple[str, ...] = ()  # names of leaves that nobody trains


class RoundFailed(Stopped):
  """Too few sites or valid replies; nothing of the round was kept.

  Args:
    message: what was expected and found.
    lines: about the sites, as far as they are known.
  """

  def __init__(self, message: str, lines: Iterable[ClientLine] = ()):
    super().__init__(message)
    self.lines = list(lines)


class TooFewSites(RoundFailed):
  """Not enough sites came within `fed.wait`."""
