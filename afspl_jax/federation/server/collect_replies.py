"""One message to each chosen site: messages out, replies in, and a line about every site."""

from collections.abc import Callable
from typing import NamedTuple

from flwr.app import Message

from afspl_jax.config.experiment import Fed
from afspl_jax.federation.contracts import Rejected, Update
from afspl_jax.federation.protocol import wire
from afspl_jax.federation.server.exchange import Exchange
from afspl_jax.federation.server.round_request import ClientLine, TrainRequest, late_lines
from afspl_jax.storage.client_status import Outcome


class Replies(NamedTuple):
  """What a round's messages brought."""

  updates: list[Update]  # the valid ones, by site
  lines: list[ClientLine]  # about every site that was chosen, absent or late, by name
  bytes_down: int


def collect_replies(
  exchange: Exchange[str], request: TrainRequest, fed: Fed, screen: Callable[[str, Message], Update]
) -> Replies:
  """Sends every chosen site the same, and keeps the valid updates.

  Args:
    exchange: reaches the sites.
    request: what is sent to whom.
    fed: sets the deadline.
    screen: makes a site's reply an update, or raises Rejected with the reason.
  """
  chosen, round = request.chosen, request.round
  messages = {
    site: Message(request.content, node, wire.TRAIN, group_id=str(round))
    for site, node in chosen.nodes.items()
  }
  answers, late = exchange.ask(messages, round, fed.deadline)
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
      line.status = error.status
    else:
      updates.append(update)
      line.num_examples, line.loss = update.num_examples, update.metrics.get("loss")
    lines.append(line)
  lines.sort(key=lambda line: line.client)
  return Replies(updates, lines, sum(map(wire.record_bytes, messages.values())))
