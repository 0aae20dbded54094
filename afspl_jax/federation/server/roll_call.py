"""Chooses the sites that train in a round, among those that are connected and free."""

import secrets
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from flwr.serverapp import Grid

from afspl_jax.config.experiment import Fed
from afspl_jax.federation.contracts import POISSON
from afspl_jax.federation.privacy.server_release import BudgetSpent
from afspl_jax.federation.server.exchange import POLL, Answer, Exchange
from afspl_jax.federation.server.round_request import Chosen, ClientLine, TooFewSites
from afspl_jax.federation.server.selection import Candidate, poisson_sample, select
from afspl_jax.federation.server.sites import ConnectedSite, Sites
from afspl_jax.storage.client_status import Outcome, Status, parse_status

_PATIENCE, _REMIND = 3.0, 30.0  # seconds before the first line about a wait, and between others


class RollCall:
  """Tracks the sites, their last reports, and the replies that are still due.

  Args:
    grid: reaches the sites.
    sites: the connected ones.
    fed: the federation's settings.
    seed: the experiment's.
    num_sites: sites to wait for at the start; in a new federation all of them must come.
    lines: of clients.jsonl so far, with the sites' last reports.
    say: tells the user about waits.
  """

  def __init__(
    self,
    grid: Grid,
    sites: Sites,
    fed: Fed,
    seed: int,
    num_sites: int,
    lines: Collection[dict[str, Any]] = (),
    say: Callable[[str], None] = lambda text: None,
  ):
    self.exchange: Exchange[str] = Exchange(grid)
    self._sites, self._fed, self._seed, self._say = sites, fed, seed, say
    self._num_sites = num_sites
    self._expected = num_sites  # 0 once they were all here, or the wait is over
    self._probability = fed.clients_per_round / num_sites  # of a site, with Poisson sampling
    # Key of the Poisson samples. All attempts at a round have the same sample: to sample again
    # after a failure would favour samples that do not fail, and epsilon is of unbiased ones.
    self._key = secrets.randbits(256)
    self._reported = {
      line["client"]: Candidate(line["num_examples"], line["loss"])
      for line in lines
      if line["num_examples"] is not None  # a valid reply, also if the attempt at the round failed
    }
    outcomes = ((line["client"], parse_status(line["status"]).outcome) for line in lines)
    self._spent = {client for client, outcome in outcomes if outcome is Outcome.SPENT}

  def choose(self, round: int) -> Chosen:
    """Waits until enough sites are connected and free, and chooses among them.

    A site that is still busy with an earlier message gets no other one.

    Raises:
      TooFewSites: fewer than `min_replies` after `wait` seconds.
      BudgetSpent: fewer than `min_replies` sites have a privacy budget left.
    """
    self._check_budgets()
    late: list[tuple[str, int, Answer]] = []
    present = self._gather(late)
    due = self.exchange.due()
    free = {
      name: site for name, site in present.items() if name not in due and name not in self._spent
    }
    picked = self._select(free, round)
    absent: dict[str, Status] = {}
    able = {name: site for name, site in self._sites.known.items() if name not in self._spent}
    for name in self._select(able, round):
      if name not in present:
        absent[name] = Status(Outcome.FAILED, "not connected")
      elif name in due:
        reason = f"still owes its reply of round {due[name]}"
        absent[name] = Status(Outcome.TIMEOUT, reason)
    return Chosen({name: free[name].node for name in picked}, absent, late)

  def present(self) -> dict[str, ConnectedSite]:
    """Waits as `choose` does, and returns all connected sites by name.

    Raises:
      TooFewSites: fewer than are expected after `wait` seconds.
    """
    return self._gather([])

  def learn(self, lines: Iterable[ClientLine]) -> None:
    """Remembers what sites reported, for later selections."""
    for line in lines:
      if line.num_examples is not None:  # a valid reply, also if the attempt at the round failed
        self._reported[line.client] = Candidate(line.num_examples, line.loss)
      if line.status.outcome is Outcome.SPENT:
        self._spent.add(line.client)

  def _check_budgets(self) -> None:
    # Sites that have not come yet count: after a start, none has.
    sites = max(self._num_sites, len(self._sites.known.keys() | self._spent))
    able = sites - len(self._spent)
    if self._spent and able < self._fed.min_replies:
      raise BudgetSpent(
        f"sites with a spent privacy budget: {len(self._spent)}; sites that are left: {able},"
        f" fewer than fed.min_replies={self._fed.min_replies}"
      )

  def _select(self, sites: dict[str, ConnectedSite], round: int) -> Sequence[str]:
    if self._fed.selection == POISSON:
      return poisson_sample(sites, self._probability, self._key, round)
    candidates = {
      name: self._reported.get(name, Candidate(site.num_examples, None))
      for name, site in sites.items()
    }
    count = min(self._fed.clients_per_round, len(sites))
    return select(self._fed.selection, candidates, count, self._seed, round)

  def _gather(self, late: list[tuple[str, int, Answer]]) -> dict[str, ConnectedSite]:
    """The connected sites, once they are enough; adds late answers to the list."""
    begin = time.monotonic()
    speak = begin + _PATIENCE
    while True:
      late += self.exchange.collect()
      present = self._sites.look()
      free = present.keys() - self.exchange.due().keys() - self._spent
      waited = time.monotonic() - begin
      here = present.keys() | self._spent  # these need not come back
      if len(here) >= self._expected and len(free) >= self._fed.min_replies:
        self._expected = 0
        return present
      if waited >= self._fed.wait:
        break
      wanted = max(self._expected, self._fed.min_replies)
      if time.monotonic() >= speak:
        speak += _REMIND
        self._say(
          f"waiting for {wanted} sites, up to {self._fed.wait - waited:.0f} s more; free:"
          f" {', '.join(sorted(free)) or 'none'}{self._left_out()}"
        )
      time.sleep(min(POLL, self._fed.wait - waited))
    is_new = self._expected and not self._reported
    if is_new or len(free) < self._fed.min_replies:
      wanted, got = max(self._expected, self._fed.min_replies), len(present if is_new else free)
      raise TooFewSites(
        f"expected {wanted} sites within {self._fed.wait:g} s (fed.wait); got {got}"
        f"{self._left_out()}"
      )
    self._say(f"going on with {len(present)} of {self._expected} sites after {self._fed.wait:g} s")
    self._expected = 0
    return present

  def _left_out(self) -> str:
    rejected = self._sites.rejected
    return "".join(f"; node {node} {why}" for node, why in sorted(rejected.items()))
