"""One round's question to the chosen sites where the server may learn no more than their sum."""

import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict

from afspl_jax.federation.contracts import POISSON, Refused
from afspl_jax.federation.protocol import wire
from afspl_jax.federation.secure import messages
from afspl_jax.federation.secure.coordinator import Aborted, Coordinator
from afspl_jax.federation.secure.crypto import SESSION, Session
from afspl_jax.federation.secure.party import FEWEST
from afspl_jax.federation.secure.terms import Terms
from afspl_jax.federation.server.collect_replies import Asked, Line, line_of
from afspl_jax.federation.server.exchange import Answer
from afspl_jax.federation.server.roll_call import RoundFailed
from afspl_jax.federation.server.screening import sentence
from afspl_jax.types import Params

T = TypeVar("T")

_QUICK = 0.1  # of the round's deadline: what each stage may take that does not train


class Summed(NamedTuple):
  """What a round's sites sent, in all."""

  update: Params  # float64: sum over sites of weight * update; 0 in rows that are not sent
  weight: int  # sum of the weights
  counts: tuple[int, ...]  # sums of what the terms count
  clients: int  # how many sites it is the sum of


class _Stages:
  """The stages of one round: whom it goes on with, and a line about everyone."""

  def __init__(self, asked: Asked):
    chosen = asked.chosen
    self._call, self._nodes, self._round = asked.call, chosen.nodes, asked.round
    self._deadline, self._begin = asked.fed.deadline, time.monotonic()
    self._of_chosen = {site: line_of(asked.round, site, "ok") for site in chosen.nodes}
    self._others: list[Line] = []
    self._add_late(chosen.late)
    self._others += [line_of(asked.round, site, status) for site, status in chosen.absent.items()]
    self.bytes_down = 0

  def ask(
    self,
    stage: str,
    kind: str,
    contents: Mapping[str, RecordDict],
    read: Callable[[str, RecordDict], T],
  ) -> dict[str, T]:
    """What the sites answer that do so in time and as they should; the others are out.

    Args:
      stage: what people know it by.
      kind: the type of the messages.
      contents: what is sent, by site.
      read: makes an answer of what a site sent, or raises WireError.
    """
    sent = {
      site: Message(content, self._nodes[site], kind, group_id=str(self._round))
      for site, content in contents.items()
    }
    seconds = self._seconds(training=kind == wire.TRAIN)
    answers, late = self._call.exchange.ask(sent, self._round, seconds)
    self.bytes_down += sum(map(wire.record_bytes, sent.values()))
    self._add_late(late)
    out: dict[str, T] = {}
    for site in sorted(answers):
      answer = answers.pop(site)  # let go of once it is read
      line = self._of_chosen[site]
      new = line_of(self._round, site, "ok", answer)
      line["bytes_up"] += new["bytes_up"]
      line["seconds"] = round(line.get("seconds", 0.0) + new["seconds"], 3)
      try:
        if answer.message is None:
          why = f"dropped: no reply to {stage} within {seconds:.3g} s"
          raise Refused(why if answer.sent else f"failed: not reached for {stage}")
        if answer.message.has_error():
          error = answer.message.error
          raise Refused(f"failed: {stage}: {error.reason or f'Flower error {error.code}'}")
        out[site] = read(site, answer.message.content)
      except wire.WireError as why:
        line["status"] = sentence(f"rejected: {stage}: {why}")
      except Refused as why:
        line["status"] = sentence(str(why))
    return out

  def leave_out(self, refused: Mapping[str, str]) -> None:
    """Says why sites are left out whose answers did not fit those of others."""
    for site, why in refused.items():
      self._of_chosen[site]["status"] = why

  def lines(self) -> list[Line]:
    """About every site, by name."""
    return sorted([*self._others, *self._of_chosen.values()], key=lambda line: line["client"])

  def _add_late(self, late: Iterable[tuple[str, int, Answer]]) -> None:
    status = f"late: discarded in round {self._round}"
    self._others += [line_of(of, site, status, answer) for site, of, answer in late]

  def _seconds(self, training: bool) -> float:
    if not training:
      return _QUICK * self._deadline
    # All that is left but for the last stage.
    spent = time.monotonic() - self._begin
    return max((1 - _QUICK) * self._deadline - spent, _QUICK * self._deadline)


def gather_sum(asked: Asked, terms: Terms, rows: Params) -> tuple[Summed | str, list[Line], int]:
  """Takes the chosen sites through a session of secure aggregation.

  Args:
    asked: the question; each stage but training has a tenth of its deadline.
    terms: what all have agreed on.
    rows: masks of the rows that all send.

  Returns:
    The sum, or why there is none; a line about everyone who was chosen, absent or late, by name;
    and the bytes that were sent.

  Raises:
    RoundFailed: updates of this size cannot be summed by these terms.
  """
  fed, nodes = asked.fed, asked.chosen.nodes
  stages = _Stages(asked)
  session = Session(secrets.token_bytes(SESSION), asked.round)
  server = Coordinator(session, terms.rules, fed.min_replies)
  found: Summed | str
  if fed.selection == POISSON and len(nodes) < FEWEST:
    # Coins are not tossed again until they please: this round is of noise alone.
    stages.leave_out(dict.fromkeys(nodes, f"dropped: fewer than {FEWEST} were drawn"))
    nothing = jax.tree.map(lambda leaf: np.zeros(leaf.shape), asked.params)
    return Summed(nothing, 0, (0,) * len(terms.counts), 0), stages.lines(), 0
  try:
    found = _session(stages, server, asked, terms, rows)
  except Aborted as why:
    found = f"secure aggregation: {why}"
  stages.leave_out(server.refused)
  return found, stages.lines(), stages.bytes_down


def _session(
  stages: _Stages, server: Coordinator, asked: Asked, terms: Terms, rows: Params
) -> Summed:
  """The four stages (secure/__init__.py)."""
  params = asked.params
  session = server.session

  def ask(
    stage: str, records: Mapping[str, ConfigRecord], read: Callable[[str, RecordDict], T]
  ) -> dict[str, T]:
    contents = {site: RecordDict({messages.SECURE: record}) for site, record in records.items()}
    return stages.ask(stage, f"query.secure_{stage}", contents, read)

  begun = dict.fromkeys(asked.chosen.nodes, messages.session_record(session))
  keys = ask("keys", begun, lambda site, reply: messages.read_keys(reply))
  told = server.introduce(keys)
  sealed = ask(
    "shares",
    {site: messages.introduction_record(session, each) for site, each in told.items()},
    lambda site, reply: messages.read_sealed(reply, told[site].peers),
  )
  given = server.forward(sealed)
  try:
    quantiser = terms.quantiser(sum(wire.values_sent(params, rows)), len(told), asked.bound)
  except ValueError as error:
    raise RoundFailed(str(error)) from error
  structure = wire.structure_digest(params)
  training = {
    site: RecordDict({**asked.content, messages.SECURE: messages.forwarded_record(session, texts)})
    for site, texts in given.items()
  }
  size = quantiser.length * quantiser.width
  masked = stages.ask(
    "train",
    wire.TRAIN,
    training,
    lambda site, reply: messages.read_masked(reply, size, structure),
  )
  questions = server.ask(masked)
  shares = ask(
    "unmask",
    {site: messages.question_record(session, each) for site, each in questions.items()},
    lambda site, reply: messages.read_shares(reply, told[site].number, questions[site]),
  )
  total = np.zeros(quantiser.length, quantiser.word)
  for packed in masked.values():
    total += quantiser.unpack(packed)
  server.unmask(total, shares)
  try:
    found = quantiser.decode(total, len(masked))
  except ValueError as error:
    raise Aborted(str(error)) from error
  update = wire.values_as_tree(found.values, params, rows)
  return Summed(update, found.weight, found.counts, len(masked))
