"""One question to the chosen sites: messages out, replies in, and a line about everyone."""

from collections.abc import Callable
from typing import Any, NamedTuple

from flwr.app import Message, RecordDict

from afspl_jax.config.experiment import Fed
from afspl_jax.federation.contracts import Refused, Update
from afspl_jax.federation.protocol import wire
from afspl_jax.federation.server.exchange import Answer
from afspl_jax.federation.server.roll_call import Chosen, RollCall
from afspl_jax.federation.server.screening import sentence
from afspl_jax.types import Params

Line = dict[str, Any]  # of clients.jsonl


class Asked(NamedTuple):
  """A round's question."""

  call: RollCall  # reaches the sites
  chosen: Chosen  # who is asked
  content: RecordDict  # what is sent
  round: int
  fed: Fed  # its deadline is when nobody is waited for any more
  params: Params  # the global params that are sent
  bound: float | None  # of an update's norm in this round, where it has one


class Gathered(NamedTuple):
  """What a round's question brought."""

  replies: list[Update]  # the valid ones, by site
  lines: list[Line]  # about every site that was chosen, absent or late, by name
  bytes_down: int


def gather(asked: Asked, judge: Callable[[str, Message], Update]) -> Gathered:
  """Sends every chosen site the same, and keeps the replies that `judge` lets pass.

  Args:
    asked: the question.
    judge: makes a site's answer a reply, or raises Refused with the reason.
  """
  call, chosen, round, deadline = asked.call, asked.chosen, asked.round, asked.fed.deadline
  messages = {
    site: Message(asked.content, node, wire.TRAIN, group_id=str(round))
    for site, node in chosen.nodes.items()
  }
  answers, late = call.exchange.ask(messages, round, deadline)
  replies: list[Update] = []
  lines = [
    line_of(of, site, f"late: discarded in round {round}", answer)
    for site, of, answer in (*chosen.late, *late)
  ]
  lines += [line_of(round, site, status) for site, status in chosen.absent.items()]
  for site in sorted(answers):
    answer = answers.pop(site)  # let go of once it is judged: it is as large as its reply
    line = line_of(round, site, "ok", answer)
    try:
      if answer.message is None:
        why = f"timeout: no reply within {deadline:g} s"
        raise Refused(why if answer.sent else "failed: not reached")
      reply = judge(site, answer.message)
    except Refused as why:
      line["status"] = sentence(str(why))
    else:
      replies.append(reply)
      line["num_examples"], line["loss"] = reply.num_examples, reply.metrics.get("loss")
      call.learn(reply)
    lines.append(line)
  lines.sort(key=lambda line: line["client"])
  return Gathered(replies, lines, sum(map(wire.record_bytes, messages.values())))


def line_of(round: int, site: str, status: str, answer: Answer | None = None) -> Line:
  """A line of clients.jsonl, about a site that sent no update yet."""
  line = {"round": round, "client": site, "num_examples": None, "loss": None, "bytes_up": 0}
  if answer is not None:
    if answer.message is not None:
      line["bytes_up"] = wire.record_bytes(answer.message)
    line["seconds"] = float(f"{answer.seconds:.3f}")
  return line | {"status": status}
