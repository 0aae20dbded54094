"""Lines of clients.jsonl: what became of each client's part in a round."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from afspl_jax.federation.contracts import Rejected
from afspl_jax.federation.protocol import wire
from afspl_jax.federation.server.exchange import Answer
from afspl_jax.storage.client_status import Outcome, Status

_LONGEST = 300  # characters of a text with words of a peer, in our files


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


def status_of(error: Rejected) -> Status:
  """The status of a client whose reply was rejected; its reason may quote what a peer sent."""
  first = f"{error.outcome}: "
  return Status(error.outcome, one_line(first + str(error))[len(first) :])


def one_line(text: str) -> str:
  """What a peer sends, as far as it goes into our files and onto a terminal: one short line."""
  line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
  return line[:_LONGEST]
