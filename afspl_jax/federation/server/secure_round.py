"""One round of secure aggregation: the server asks stage by stage, and learns the sum alone."""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict

from afspl_jax.config.experiment import Fed
from afspl_jax.federation.contracts import POISSON, Rejected
from afspl_jax.federation.protocol import wire
from afspl_jax.federation.secure import messages
from afspl_jax.federation.secure.coordinator import Aborted, Coordinator
from afspl_jax.federation.secure.crypto import SESSION, Session
from afspl_jax.federation.secure.graph import FEWEST
from afspl_jax.federation.secure.terms import Terms
from afspl_jax.federation.server.exchange import Answer, Exchange
from afspl_jax.federation.server.round_request import (
  ClientLine,
  RoundFailed,
  TrainRequest,
  late_lines,
)
from afspl_jax.federation.server.screening import outcome_of_error
from afspl_jax.storage.client_status import Outcome, Status
from afspl_jax.storage.pytrees import zeros_like
from afspl_jax.types import Params

T = TypeVar("T")

_QUICK = 0.1  # of the round's deadline: what each stage may take that does not train


class SecureSum(NamedTuple):
  """The sum of what a round's sites sent."""

  update: Params  # float64: sum over sites of weight * update; 0 in rows that are not sent
  weight: int  # sum of the weights
  counts: tuple[int, ...]  # sums of what the terms count
  clients: int  # how many sites it is the sum of


class _Stages:
  """The stages of one round: the sites that are still in it, and a line about every site."""

  def __init__(self, exchange: Exchange[str], request: TrainRequest, fed: Fed):
    self._exchange, self._nodes, self._round = exchange, request.chosen.nodes, request.round
    self._deadline, self._begin = fed.deadline, time.monotonic()
    self._chosen = {site: ClientLine(request.round, site) for site in request.chosen.nodes}
    self._others = request.chosen.lines(request.round)
    self.bytes_down = 0

  def ask(
    self,
    stage: str,
    kind: str,
    contents: Mapping[str, RecordDict],
    read: Callable[[str, RecordDict], T],
  ) -> dict[str, T]:
    """The valid answers that come in time; sites without one are out.

    Args:
      stage: its name in messages to people.
      kind: the type of the messages.
      contents: what is sent, by site.
      read: parses a site's answer, or raises WireError.
    """
    sent = {
      site: Message(content, self._nodes[site], kind, group_id=str(self._round))
      for site, content in contents.items()
    }
    seconds = self._seconds(training=kind == wire.TRAIN)
    answers, late = self._exchange.ask(sent, self._round, seconds)
    self.bytes_down += sum(map(wire.record_bytes, sent.values()))
    self._others += late_lines(self._round, late)
    out: dict[str, T] = {}
    for site in sorted(answers):
      answer = answers.pop(site)  # freed once it is read
      line = self._chosen[site]
      line.add(answer)
      try:
        out[site] = _parsed(stage, site, answer, seconds, read)
      except Rejected as error:
        line.status = error.status
    return out

  def ask_records(
    self, stage: str, records: Mapping[str, ConfigRecord], read: Callable[[str, RecordDict], T]
  ) -> dict[str, T]:
    """As `ask`, for a stage that does not train."""
    contents = {site: RecordDict({messages.SECURE: record}) for site, record in records.items()}
    return self.ask(stage, f"query.secure_{stage}", contents, read)

  def leave_out(self, statuses: Mapping[str, Status]) -> None:
    """Says why sites are left out whose answers did not fit those of others."""
    for site, status in statuses.items():
      self._chosen[site].status = status

  def lines(self) -> list[ClientLine]:
    """About every site, by name."""
    return sorted([*self._others, *self._chosen.values()], key=lambda line: line.client)

  def _seconds(self, training: bool) -> float:
    if not training:
      return _QUICK * self._deadline
    # All that is left but for the last two stages.
    spent = time.monotonic() - self._begin
    return max((1 - 2 * _QUICK) * self._deadline - spent, _QUICK * self._deadline)


def _parsed(
  stage: str, site: str, answer: Answer, seconds: float, read: Callable[[str, RecordDict], T]
) -> T:
  """What an answer says.

  Raises:
    Rejected: there is none, or it is not what was agreed on.
  """
  if answer.message is None and answer.sent:
    raise Rejected(f"no reply to {stage} within {seconds:.3g} s", Outcome.DROPPED)
  if answer.message is None:
    raise Rejected(f"not reached for {stage}", Outcome.FAILED)
  if answer.message.has_error():
    error = answer.message.error
    reason = error.reason or f"Flower error {error.code}"
    raise Rejected(f"{stage}: {reason}", outcome_of_error(reason))
  try:
    return read(site, answer.message.content)
  except wire.WireError as error:
    raise Rejected(f"{stage}: {error}") from error


def secure_sum(
  exchange: Exchange[str],
  request: TrainRequest,
  fed: Fed,
  terms: Terms,
  rows: Params,
  known: dict[str, bytes],
) -> tuple[SecureSum | str, list[ClientLine], int]:
  """Takes the chosen sites through a session of secure aggregation.

  Args:
    exchange: reaches the sites.
    request: what is sent to whom.
    fed: sets the deadline, of which each stage but training has a tenth.
    terms: what all have agreed on.
    rows: masks of the rows that all send.
    known: identity keys of sites in earlier rounds of the run; new ones are added.

  Returns:
    The sum, or why there is none; a line about every site that was chosen, absent or late, by name;
    and the bytes that were sent.

  Raises:
    RoundFailed: updates of this size cannot be summed by these terms.
  """
  stages = _Stages(exchange, request, fed)
  if fed.selection == POISSON and len(request.chosen.nodes) < FEWEST:
    # The sample is not repeated until it is large enough: this round is of noise alone.
    status = Status(Outcome.DROPPED, f"fewer than {FEWEST} were drawn")
    stages.leave_out(dict.fromkeys(request.chosen.nodes, status))
    nothing = zeros_like(request.params, np.float64)
    return SecureSum(nothing, 0, (0,) * len(terms.counts), 0), stages.lines(), 0
  session = Session(secrets.token_bytes(SESSION), request.round)
  server = Coordinator(session, terms.rules, fed.min_replies, known)
  found: SecureSum | str
  try:
    found = _session(stages, server, request, terms, rows)
  except Aborted as why:
    found = f"secure aggregation: {why}"
  stages.leave_out(server.left_out)
  return found, stages.lines(), stages.bytes_down


def _session(
  stages: _Stages, server: Coordinator, request: TrainRequest, terms: Terms, rows: Params
) -> SecureSum:
  """The stages (secure/__init__.py)."""
  params, session, ask = request.params, server.session, stages.ask_records
  opening = dict.fromkeys(request.chosen.nodes, messages.session_record(session))
  keys = ask("keys", opening, lambda site, reply: messages.read_keys(reply, site))
  introductions = server.introduce(keys)
  sealed = ask(
    "shares",
    {site: messages.introduction_record(session, each) for site, each in introductions.items()},
    lambda site, reply: messages.read_sealed(reply, server.peers_of(site)),
  )
  forwarded = server.forward(sealed)
  try:
    quantiser = terms.quantiser(
      sum(wire.values_sent(params, rows)), len(introductions), request.bound
    )
  except ValueError as error:
    raise RoundFailed(str(error)) from error
  structure = wire.structure_digest(params)
  training = {
    site: RecordDict(
      {**request.content, messages.SECURE: messages.forwarded_record(session, texts)}
    )
    for site, texts in forwarded.items()
  }
  size = quantiser.length * quantiser.width
  masked = stages.ask(
    "train",
    wire.TRAIN,
    training,
    lambda site, reply: messages.read_masked(reply, size, structure),
  )
  survivors = server.settle({site: each.signature for site, each in masked.items()})
  stayed = [server.name(number) for number in survivors]
  shares = _shares(stages, server, survivors)
  total = np.zeros(quantiser.length, quantiser.word)
  for site in stayed:
    total += quantiser.unpack(masked[site].words)
  server.unmask(total, shares)
  try:
    found = quantiser.decode(total, len(stayed))
  except ValueError as error:
    raise Aborted(str(error)) from error
  update = wire.values_as_tree(found.values, params, rows)
  return SecureSum(update, found.weight, found.counts, len(stayed))


def _shares(
  stages: _Stages, server: Coordinator, survivors: Sequence[int]
) -> dict[str, dict[int, bytes]]:
  """The shares that remove the masks, by site; the sites first sign the survivors if they must."""
  session, signatures = server.session, dict[int, bytes]()
  if server.needs_signatures():
    asked = {
      (site := server.name(number)): messages.survivors_record(
        session, survivors, server.agreed(site)
      )
      for number in survivors
    }
    signatures = server.confirmed(
      stages.ask_records("confirm", asked, lambda site, reply: messages.read_signature(reply))
    )
  question = messages.signatures_record(session, signatures)
  return stages.ask_records(
    "unmask",
    {server.name(number): question for number in signatures or survivors},
    lambda site, reply: messages.read_shares(reply, server.shares_of(site)),
  )
