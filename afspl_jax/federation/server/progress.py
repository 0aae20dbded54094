"""What a run reports while it goes on, and who follows it."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

MetricsLine = dict[str, Any]  # of metrics.jsonl


class RoundReport(NamedTuple):
  """What a finished round wrote to the run's folder."""

  round: int
  train: MetricsLine | None  # None for round 0
  val: MetricsLine | None  # None if the round was not scored
  clients: list[dict[str, Any]]  # of clients.jsonl


@runtime_checkable
class Progress(Protocol):
  """Follows a run while it goes on."""

  def waiting(self, text: str) -> None:
    """The server waits for sites, tries a round again, or ends early."""
    ...

  def site_changed(self, text: str) -> None:
    """A site has come, is gone or was rejected."""
    ...

  def round_done(self, report: RoundReport) -> None:
    """A round is finished and on disk."""
    ...


class Silent:
  """A Progress that shows nothing."""

  def waiting(self, text: str) -> None:
    """Shows nothing."""

  def site_changed(self, text: str) -> None:
    """Shows nothing."""

  def round_done(self, report: RoundReport) -> None:
    """Shows nothing."""


SILENT = Silent()
