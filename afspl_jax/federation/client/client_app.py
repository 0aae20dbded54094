"""A site's half of the federation: its ClientApp."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from afspl_jax.config.nested_values import differences
from afspl_jax.errors import UserError
from afspl_jax.federation.contracts import Clipping, Masking, SiteError, Trainer, Update, attempt
from afspl_jax.federation.protocol import wire
from afspl_jax.federation.protocol.image_statistics import ImageStatistics, statistics_content
from afspl_jax.storage.json_text import parse_json
from afspl_jax.types import Params

_LOG = logging.getLogger(__name__)


class _Task(NamedTuple):
  """The task that a message gives to its client; equal for all messages of a round."""

  params: Params  # the global ones
  round: int
  control: Params | None  # the server's, if it sent one

  def equals(self, other: "_Task") -> bool:
    if self.round != other.round or (self.control is None) != (other.control is None):
      return False
    return jax.tree.all(jax.tree.map(np.array_equal, self, other))


class _Request(NamedTuple):
  """A message that asks to train, with what the reply needs."""

  message: Message
  client: int
  task: _Task
  bound: float | None  # of the update's norm, where it has one


class SiteApp(ClientApp):
  """The ClientApp of every site; the same for local and networked runs.

  It answers `train` and `query.hello`, and `query.statistics` if it is given them. The client index
  is the node's `partition-id`. An error that a client raises becomes an error reply.

  Args:
    trainer: does the work.
    template: pytree with the shapes and dtypes that are exchanged.
    terms: other settings that the server must share with this site, by name; names that only the
      server has are not compared.
    clipping: bounds updates; by default they are sent as the trainer made them.
    masking: hides updates in their sum, so that the server sees none of them.
    statistics: of a client's images; by default none are sent, whatever the server asks.
  """

  def __init__(
    self,
    trainer: Trainer,
    template: Params,
    terms: dict[str, Any] | None = None,
    clipping: Clipping | None = None,
    masking: Masking | None = None,
    statistics: Callable[[int], ImageStatistics] | None = None,
  ):
    super().__init__()
    self._trainer, self._template = trainer, template
    self._clipping, self._masking = clipping, masking
    self._terms = wire.terms(template, terms or {})
    self.train()(self._train_one)
    self.query("hello")(self._hello)
    if statistics:

      @self.query("statistics")
      def answer(message: Message, context: Context) -> Message:
        return Message(statistics_content(statistics(_client(context))), reply_to=message)

    if masking:
      masking.register(self, _client, trainer.site)

  def answer_together(
    self, requests: Sequence[tuple[Message, Context]]
  ) -> Iterator[Message | Exception]:
    """Answers messages that ask to train: those that ask for the same are trained in one call.

    Args:
      requests: messages, each with the context of its client.

    Yields:
      A reply to each message, in order, or the error that its client failed with.
    """
    cohorts: list[tuple[_Task, list[int]]] = []  # equal tasks are kept in memory once
    parsed: list[tuple[int, _Request] | Exception] = []  # requests with the place of their cohort
    for request in requests:
      asked = attempt(self._parse, *request)
      parsed.append(asked if isinstance(asked, Exception) else _join_cohort(cohorts, asked))
    results = [self._train(task, clients) for task, clients in cohorts]
    for each in parsed:
      if isinstance(each, Exception):
        yield each
      else:
        place, asked = each
        yield attempt(self._reply, asked, results[place].pop(asked.client))

  def _train_one(self, message: Message, context: Context) -> Message:
    """Answers one message that asks to train; over the network, each client is a cohort of one."""
    (answer,) = self.answer_together([(message, context)])
    if isinstance(answer, Exception):
      raise answer
    return answer

  def _train(self, task: _Task, clients: Sequence[int]) -> dict[int, Update | Exception]:
    given = {} if task.control is None else {"control": task.control}
    train = self._trainer.train_cohort
    results = attempt(train, task.params, clients, task.round, **given)
    return dict.fromkeys(clients, results) if isinstance(results, Exception) else dict(results)

  def _parse(self, message: Message, context: Context) -> _Request:
    """What a message asks for.

    Raises:
      WireError: it is not what was agreed on.
    """
    records = message.content
    config = records.config_records.get(wire.CONFIG, {})
    structure = self._terms[wire.STRUCTURE]
    if config.get(wire.STRUCTURE) != structure:
      raise wire.WireError(
        f"structure of the params: this site has {structure}; the server has "
        f"{config.get(wire.STRUCTURE)}. Run the same version and config on both"
      )
    round = config.get(wire.ROUND)
    if not isinstance(round, int) or round < 1:
      raise wire.WireError(f"round: expected a positive int; got {round!r}")
    if wire.ARRAYS not in records.array_records:
      raise wire.WireError(f"expected the record {wire.ARRAYS!r}; got {sorted(records)}")
    params = wire.unpack(records.array_records[wire.ARRAYS], self._template)
    control = None
    if wire.CONTROL in records.array_records:
      control = wire.unpack(records.array_records[wire.CONTROL], self._template)
    client = _client(context)
    bound = self._clipping.agreed_bound(config.get(wire.CLIP)) if self._clipping else None
    if self._masking:
      self._masking.check_request(client, round, records)
    return _Request(message, client, _Task(params, round, control), bound)

  def _reply(self, request: _Request, result: Update | Exception) -> Message:
    """The reply to a request.

    Raises:
      FloatingPointError: local training failed with it.
      UserError: of a file or the disk of this host; its text is for the user here, not for the
        server.
      SiteError: it failed otherwise, has a metric that is not finite, or has no budget left.
    """
    task, site = request.task, self._trainer.site(request.client)
    if isinstance(result, FloatingPointError | UserError | SiteError):
      raise result
    if isinstance(result, Exception):
      # Its text may quote a caption, an id or a path, and the server gets the text of our error.
      _LOG.error("%s: round %d failed", site, task.round, exc_info=result)
      kind = type(result).__name__
      raise SiteError(f"{kind} in local training; the site's own log has the rest")
    if self._clipping and request.bound is not None:
      result = self._clipping.apply(result, task.params, request.bound)
    if self._masking:
      content = request.message.content
      hidden = self._masking.masked_reply(
        request.client, content, result, task.params, request.bound
      )
      return Message(hidden, reply_to=request.message)
    for name, value in result.metrics.items():
      if not math.isfinite(value):
        raise SiteError(f"{name}: expected a finite number; got {float(value)}")
    return Message(wire.update_content(result), reply_to=request.message)

  def _hello(self, message: Message, context: Context) -> Message:
    """Says which site this is to a server with the same terms."""
    asked = message.content.config_records.get(wire.CONFIG, {}).get(wire.TERMS)
    try:
      theirs = parse_json(asked) if isinstance(asked, str) else None
    except ValueError:
      theirs = None
    if not isinstance(theirs, dict):
      raise wire.WireError(f"terms: expected a JSON object; got {str(asked)[:40]!r}")
    differ = differences(self._terms, _values_of_names(self._terms, theirs))
    if differ:
      raise wire.WireError(
        f"this site and the server differ (site -> server): {'; '.join(differ)}."
        " Run the same version, config and backbones on both"
      )
    client = _client(context)
    # With clipping all clients weigh the same, and under masks the weight is hidden in the sum.
    examples = 1 if self._clipping or self._masking else self._trainer.num_examples(client)
    answer = ConfigRecord({wire.SITE: self._trainer.site(client), wire.NUM_EXAMPLES: examples})
    return Message(RecordDict({wire.CONFIG: answer}), reply_to=message)


def _join_cohort(cohorts: list[tuple[_Task, list[int]]], request: _Request) -> tuple[int, _Request]:
  """Adds a request's client to the first cohort with the same task, or to a new one."""
  for place, (task, clients) in enumerate(cohorts):
    if request.client not in clients and task.equals(request.task):
      clients.append(request.client)
      return place, request._replace(task=task)
  cohorts.append((request.task, [request.client]))
  return len(cohorts) - 1, request


def _client(context: Context) -> int:
  if "partition-id" not in context.node_config:
    raise ValueError("node config: expected partition-id=<index of this site>; it is missing")
  return int(context.node_config["partition-id"])


def _values_of_names(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
  """Their values under the names that we have."""
  return {
    name: _values_of_names(value, theirs[name])
    if isinstance(value, dict) and isinstance(theirs[name], dict)
    else theirs[name]
    for name, value in ours.items()
    if name in theirs
  }
