"""One message to each chosen site: messages out, replies in, and a line about every site."""

from collections.abc import Callable
from typing import NamedTuple

from flwr.app import Message, RecordDict

from afspl_jax.config.experiment import Fed
from afspl_jax.federation.contracts import Rejected, Update
from afspl_jax.federation.protocol import wire
from afspl_jax.federation.server.client_lines import ClientLine, late_lines, status_of
from afspl_jax.federation.server.roll_call import Chosen, RollCall
from afspl_jax.storage.client_status import Outcome
from afspl_jax.types import Params


class TrainRequest(NamedTuple):
  """What a round asks of its sites."""

  round: int
  params: Params  # the global params that are sent
  chosen: Chosen  # who is asked
  content: RecordDict  # what is sent
  bound: float | None  # of an update's norm in this round, where it has one


class Replies(NamedTuple):
  """What a round's messages brought."""

  updates: list[Update]  # the valid ones, by site
  lines: list[ClientLine]  # about every site that was chosen, absent or late, by name
  bytes_down: int


def collect_replies(
  call: RollCall, request: TrainRequest, fed: Fed, screen: Callable[[str, Message], Update]
) -> Replies:
  """Sends every chosen site the same, and keeps the valid updates.

  Args:
    call: reaches the sites.
    request: what is sent to whom.
    fed: sets the deadline.
    screen: makes a site's reply an update, or raises Rejected with the reason.
  """
  chosen, round = request.chosen, request.round
  messages = {
    site: Message(request.content, node, wire.TRAIN, group_id=str(round))
    for site, node in chosen.nodes.items()
  }
  answers, late = call.exchange.ask(messages, round, fed.deadline)
  updates: list[Update] = []
  lines = chosen.lines(round) + late_lines(round, late)
  for site in sorted(answers):
    answer = answers.pop(site)  # freed once it is screened: it is as large as its reply
    line = ClientLine(round, site)
    line.add(answer)
    try:
      if answer.message is None and answer.sent:
        raise Rejected(f"no reply within {fed.deadline:g} s", Outcome.TIMEOUT)
      if answer.message is None:
        raise Rejected("not reached", Outcome.FAILED)
      update = screen(site, answer.message)
    except Rejected as error:
      line.status = status_of(error)
    else:
      updates.append(update)
      line.num_examples, line.loss = update.num_examples, update.metrics.get("loss")
      call.learn(update)
    lines.append(line)
  lines.sort(key=lambda line: line.client)
  return Replies(updates, lines, sum(map(wire.record_bytes, messages.values())))
