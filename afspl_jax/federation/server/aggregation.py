"""What a round's sites said: every one's reply, or their sum alone."""

from collections.abc import Sequence
from typing import NamedTuple

from flwr.app import Message

from afspl_jax.federation.contracts import Update
from afspl_jax.federation.privacy.server_release import Release, Total, total_of
from afspl_jax.federation.protocol import uplink, wire
from afspl_jax.federation.secure.terms import Terms
from afspl_jax.federation.server.collect_replies import Asked, Line, gather
from afspl_jax.federation.server.roll_call import RoundFailed
from afspl_jax.federation.server.screening import screen
from afspl_jax.federation.server.secure_round import Summed, gather_sum
from afspl_jax.types import Params


class Heard(NamedTuple):
  """What a round brought."""

  replies: list[Update]  # for the strategy
  total: Total | None  # instead of them, where it has yet to be released
  means: dict[str, float]  # of the sites' metrics
  clients: int  # sites whose updates are in it
  bytes_down: int


def hear_each(asked: Asked, private: Release | None, clients: list[Line]) -> Heard:
  """Every chosen site's reply.

  Args:
    asked: the question.
    private: where less than every update may be used.
    clients: gets a line about everyone.

  Raises:
    RoundFailed: too few valid replies.
  """
  params, fed = asked.params, asked.fed
  structure, controlled = wire.structure_digest(params), wire.CONTROL in asked.content

  def judge(site: str, answer: Message) -> Update:
    reply = screen(site, answer, params, structure, fed, controlled)
    return reply if private is None else private.screen(reply, asked.round)

  replies, lines, bytes_down = gather(asked, judge)
  clients += lines
  if len(replies) < fed.min_replies and not (private is not None and not asked.chosen.nodes):
    raise RoundFailed(
      f"round {asked.round}: expected at least {fed.min_replies} valid replies; got"
      f" {len(replies)} of {len(asked.chosen.nodes)}. {_refusals(lines)}"
    )
  total = None if asked.bound is None else total_of(params, replies, asked.bound)
  return Heard(replies, total, _weighted_means(replies), len(replies), bytes_down)


def hear_sum(
  asked: Asked, terms: Terms, rows: Params, clients: list[Line], *, private: bool
) -> Heard:
  """The chosen sites' sum, under secure aggregation.

  Args:
    asked: the question.
    terms: of secure aggregation.
    rows: masks of the rows that all send.
    clients: gets a line about everyone.
    private: whether the sum has yet to be released; else its mean is the one reply.

  Raises:
    RoundFailed: too few sites stayed for the sum to be known.
  """
  found, lines, bytes_down = gather_sum(asked, terms, rows)
  clients += lines
  if not isinstance(found, Summed):
    raise RoundFailed(f"round {asked.round}: {found}. {_refusals(lines)}")
  if private:
    total = Total(found.update, float(sum(found.counts)), found.clients)
    return Heard([], total, {}, found.clients, bytes_down)
  mean = Update("all", uplink.moved(asked.params, found.update, rows, found.weight), rows, 1, {})
  shares = {name: n / found.clients for name, n in zip(terms.counts, found.counts, strict=True)}
  return Heard([mean], None, shares, found.clients, bytes_down)


def _refusals(lines: Sequence[Line]) -> str:
  return "; ".join(f"{c['client']}: {c['status']}" for c in lines if c["status"] != "ok")


def _weighted_means(replies: Sequence[Update]) -> dict[str, float]:
  """Means over examples of the metrics that every site reports."""
  if not replies:
    return {}
  total = sum(reply.num_examples for reply in replies)
  shared = set.intersection(*(set(reply.metrics) for reply in replies))
  return {
    name: sum(reply.num_examples * reply.metrics[name] for reply in replies) / total
    for name in sorted(shared)
  }
