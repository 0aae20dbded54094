"""How a round's updates reach the strategy: each by itself, or only as their sum.

A run has one `Aggregation`, chosen at its start:

- PlainAggregation: the server sees every update.
- SecureAggregation: it learns the sum of the updates alone (secure/).
- PrivateAggregation: the sum of bounded updates is released with noise (privacy/); it takes the sum
  from every site's own reply, or from a SecureAggregation.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from flwr.app import Message

from afspl_jax.config.experiment import Experiment, Fed, Uplink
from afspl_jax.federation.contracts import Update
from afspl_jax.federation.privacy.server_release import Release, Total, release_of, total_of
from afspl_jax.federation.protocol import uplink, wire
from afspl_jax.federation.secure.terms import Terms, terms_of
from afspl_jax.federation.server.collect_replies import collect_replies
from afspl_jax.federation.server.exchange import Exchange
from afspl_jax.federation.server.round_request import (
  ClientLine,
  RoundFailed,
  TrainRequest,
)
from afspl_jax.federation.server.screening import screen
from afspl_jax.federation.server.secure_round import SecureSum, secure_sum
from afspl_jax.storage.client_status import Outcome


class Collected(NamedTuple):
  """What a round brought."""

  updates: list[Update]  # for the strategy: each site's, or one that stands for all
  clients: int  # sites whose updates are in it
  lines: list[ClientLine]  # about every site
  bytes_down: int
  metrics: dict[str, float]  # for the round's line: means over the sites, or what was released
  kept: dict[str, Any] = {}  # noqa: RUF012 - what the server's state keeps besides, by name


@runtime_checkable
class Aggregation(Protocol):
  """How a run's server collects and combines updates."""

  def first_state(self) -> dict[str, Any]:
    """What the server's state has besides before the first round."""
    ...

  def bound(self, state: dict[str, Any]) -> float | None:
    """The bound on an update's norm in the round that follows a state, where there is one."""
    ...

  def prepare(self, sites: Collection[str]) -> None:
    """Lets a round begin that these sites take part in.

    Raises:
      BudgetSpent: it would cost more than the privacy budget.
    """
    ...

  def collect(self, exchange: Exchange[str], request: TrainRequest, fed: Fed) -> Collected:
    """Sends the request, and combines what comes back by the deadline.

    Raises:
      RoundFailed: too few valid replies; it has the lines of the sites.
    """
    ...


class _Open:
  """An aggregation without a bound or a budget."""

  def first_state(self) -> dict[str, Any]:
    """Nothing besides."""
    return {}

  def bound(self, state: dict[str, Any]) -> float | None:
    """Updates are of any size."""
    return None

  def prepare(self, sites: Collection[str]) -> None:
    """Every round may begin."""


class PlainAggregation(_Open):
  """The server sees every site's update."""

  def collect(self, exchange: Exchange[str], request: TrainRequest, fed: Fed) -> Collected:
    """Every valid update, and the means of what sites report."""
    updates, lines, bytes_down = collect_replies(exchange, request, fed, _screener(request, fed))
    _expect_replies(request, fed, len(updates), lines)
    return Collected(updates, len(updates), lines, bytes_down, _weighted_means(updates))


class SecureAggregation(_Open):
  """The server learns the sum of the sites' updates and no site's own.

  Args:
    terms: what all have agreed on.
    config: which rows are sent.
    seed: the experiment's.
  """

  def __init__(self, terms: Terms, config: Uplink, seed: int):
    self._terms, self._uplink, self._seed = terms, config, seed
    self._known: dict[str, bytes] = {}  # identity keys of sites

  def collect(self, exchange: Exchange[str], request: TrainRequest, fed: Fed) -> Collected:
    """The mean of the updates as the one update, and the means of what is counted."""
    found, lines, bytes_down = self._sum(exchange, request, fed)
    rows = self._rows(request)
    mean = uplink.moved(request.params, found.update, rows, found.weight)
    shares = {
      name: count / found.clients
      for name, count in zip(self._terms.counts, found.counts, strict=True)
    }
    update = Update("all", mean, rows, 1, {})
    return Collected([update], found.clients, lines, bytes_down, shares)

  def total(
    self, exchange: Exchange[str], request: TrainRequest, fed: Fed
  ) -> tuple[Total, list[ClientLine], int]:
    """The sum itself, where it is not to be used before it is released."""
    found, lines, bytes_down = self._sum(exchange, request, fed)
    return Total(found.update, float(sum(found.counts)), found.clients), lines, bytes_down

  def _sum(
    self, exchange: Exchange[str], request: TrainRequest, fed: Fed
  ) -> tuple[SecureSum, list[ClientLine], int]:
    rows = self._rows(request)
    found, lines, bytes_down = secure_sum(exchange, request, fed, self._terms, rows, self._known)
    if isinstance(found, str):
      raise RoundFailed(f"round {request.round}: {found}. {_failures(lines)}", lines)
    return found, lines, bytes_down

  def _rows(self, request: TrainRequest) -> Any:
    return uplink.shared_rows(request.params, self._uplink, (self._seed, request.round))


class PrivateAggregation:
  """The sum of bounded updates is released with noise; no update is used by itself.

  Args:
    release: bounds, noise and the account of what was spent.
    secure: where the server must not even see the single updates.
  """

  def __init__(self, release: Release, secure: SecureAggregation | None = None):
    self._release, self._secure = release, secure
    self.first_state, self.prepare = release.first_state, release.afford

  def bound(self, state: dict[str, Any]) -> float:
    """The bound that every update is clipped to."""
    return self._release.bound(state)

  def collect(self, exchange: Exchange[str], request: TrainRequest, fed: Fed) -> Collected:
    """The noisy mean as the one update, and what it says of the round."""
    assert request.bound is not None, "updates are bounded"
    source = self._screened_total if self._secure is None else self._secure.total
    total, lines, bytes_down = source(exchange, request, fed)
    update, metrics, kept = self._release.combine(
      request.params, total, request.bound, request.round, request.chosen.nodes
    )
    return Collected([update], total.clients, lines, bytes_down, metrics, kept)

  def _screened_total(
    self, exchange: Exchange[str], request: TrainRequest, fed: Fed
  ) -> tuple[Total, list[ClientLine], int]:
    """The sum of replies that the server sees and screens one by one."""
    assert request.bound is not None, "updates are bounded"
    first = _screener(request, fed)

    def screened(site: str, answer: Message) -> Update:
      return self._release.screen(first(site, answer), request.round)

    updates, lines, bytes_down = collect_replies(exchange, request, fed, screened)
    if request.chosen.nodes:  # Poisson sampling may choose nobody: a round of noise alone
      _expect_replies(request, fed, len(updates), lines)
    return total_of(request.params, updates, request.bound), lines, bytes_down


def aggregation_of(config: Experiment, folder: Path) -> Aggregation:
  """The aggregation that an experiment asks for; `folder` is for the account of what it spends."""
  terms, release = terms_of(config), release_of(config, folder)
  secure = None if terms is None else SecureAggregation(terms, config.uplink, config.seed)
  if release is not None:
    return PrivateAggregation(release, secure)
  return secure or PlainAggregation()


def _screener(request: TrainRequest, fed: Fed):
  """What makes a site's reply to the request an update."""
  structure = wire.structure_digest(request.params)
  controlled = wire.CONTROL in request.content

  def screened(site: str, answer: Message) -> Update:
    return screen(site, answer, request.params, structure, fed, controlled, request.fixed)

  return screened


def _expect_replies(
  request: TrainRequest, fed: Fed, number: int, lines: Sequence[ClientLine]
) -> None:
  if number < fed.min_replies:
    raise RoundFailed(
      f"round {request.round}: expected at least {fed.min_replies} valid replies; got"
      f" {number} of {len(request.chosen.nodes)}. {_failures(lines)}",
      lines,
    )


def _failures(lines: Sequence[ClientLine]) -> str:
  failed = (line for line in lines if line.status.outcome is not Outcome.OK)
  return "; ".join(f"{line.client}: {line.status}" for line in failed)


def _weighted_means(updates: Sequence[Update]) -> dict[str, float]:
  """Means over examples of the metrics that every site reports."""
  if not updates:
    return {}
  total = sum(update.num_examples for update in updates)
  shared = set.intersection(*(set(update.metrics) for update in updates))
  return {
    name: sum(update.num_examples * update.metrics[name] for update in updates) / total
    for name in sorted(shared)
  }
