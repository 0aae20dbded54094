"""What became of a client's part in a round, as clients.jsonl says it: "ok", "late: ...", ..."""

from enum import StrEnum
from typing import NamedTuple


class Outcome(StrEnum):
  """The first word of a status."""

  OK = "ok"  # the update is in the average
  TIMEOUT = "timeout"  # no reply by the deadline
  LATE = "late"  # a reply to an earlier round: discarded
  REJECTED = "rejected"  # a reply that is not what was agreed on
  FAILED = "failed"  # an error at the client or on the way to it
  DROPPED = "dropped"  # left out of a secure sum
  SPENT = "spent"  # the client's privacy budget does not allow another round
  UNUSED = "unused"  # a valid reply to an attempt that failed


_LONGEST = 300  # characters of a status


class Status(NamedTuple):
  """An outcome and its reason, which only "ok" has not."""

  outcome: Outcome
  reason: str = ""

  def __str__(self) -> str:
    return f"{self.outcome}: {self.reason}" if self.reason else str(self.outcome)


def one_line(text: str) -> str:
  """A text from a peer, as it goes into our files and onto a terminal: one short line."""
  line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
  return line[:_LONGEST]


def parse_status(text: str) -> Status:
  """The status of a line of clients.jsonl; a text that no run writes is a failure."""
  outcome, _, reason = text.partition(": ")
  try:
    return Status(Outcome(outcome), reason)
  except ValueError:
    return Status(Outcome.FAILED, text)
