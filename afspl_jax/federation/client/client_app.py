"""A site's half of the federation: the ClientApp, and what it asks of a trainer."""

import logging
import math
from typing import Any

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from afspl_jax.config.experiment import differences
from afspl_jax.federation.contracts import Guard, Masks, SiteFault, Trainer
from afspl_jax.federation.protocol import wire
from afspl_jax.storage.json_text import parse
from afspl_jax.types import Params

_LOG = logging.getLogger(__name__)


def make_client_app(
  trainer: Trainer,
  template: Params,
  terms: dict[str, Any] | None = None,
  guard: Guard | None = None,
  masks: Masks | None = None,
) -> ClientApp:
  """The ClientApp of every site; the same for local and networked runs.

  The client index is the node's `partition-id`. What a client raises becomes an error reply.

  Args:
    trainer: does the work.
    template: pytree with the shapes and dtypes that are exchanged.
    terms: what the server must have in common with this site besides them, by name; what the
      server names besides is none of this site's business.
    guard: bounds what leaves; by default all that the trainer found is sent.
    masks: hide it from the server in the sum of all.

  Returns:
    An app that answers `train` and `query.hello`.
  """
  app = ClientApp()
  ours = wire.terms(template, terms or {})
  structure = ours[wire.STRUCTURE]

  @app.train()
  def train(message: Message, context: Context) -> Message:
    records = message.content
    config = records.config_records.get(wire.CONFIG, {})
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
    params = wire.unpack(records.array_records[wire.ARRAYS], template)
    given = {}
    if wire.CONTROL in records.array_records:
      given["control"] = wire.unpack(records.array_records[wire.CONTROL], template)
    client = _client(context)
    bound = guard.bound(config.get(wire.CLIP)) if guard else None
    if masks:
      masks.expect(client, round, records)
    try:
      result = trainer.train(params, client, round, **given)
    except FloatingPointError:
      raise
    except Exception as error:  # noqa: BLE001 - it is logged, and its kind is the reply
      # Its text may quote a caption, an id or a path, and what is raised here travels.
      _LOG.exception("%s: round %d failed", trainer.site(client), round)
      kind = type(error).__name__
      raise SiteFault(f"{kind} in local training; the site's own log has the rest") from None
    if guard and bound is not None:
      result = guard.leave(trainer.site(client), result, params, bound)
    if masks:
      return Message(masks.hide(client, records, result, params, bound), reply_to=message)
    metrics: dict[str, int | float] = {wire.NUM_EXAMPLES: int(result.num_examples)}
    for name, value in result.metrics.items():
      metrics[name] = float(value)
      if not math.isfinite(metrics[name]):
        raise SiteFault(f"{name}: expected a finite number; got {metrics[name]}")
    reply = RecordDict(
      {
        wire.ARRAYS: wire.pack(result.params, result.masks),
        wire.METRICS: MetricRecord(metrics),
        wire.CONFIG: ConfigRecord({wire.STRUCTURE: wire.structure_digest(result.params)}),
      }
    )
    if result.control is not None:
      reply[wire.CONTROL] = wire.pack(result.control)
    return Message(reply, reply_to=message)

  @app.query("hello")
  def hello(message: Message, context: Context) -> Message:
    asked = message.content.config_records.get(wire.CONFIG, {}).get(wire.TERMS)
    try:
      theirs = parse(asked) if isinstance(asked, str) else None
    except ValueError:
      theirs = None
    if not isinstance(theirs, dict):
      raise wire.WireError(f"terms: expected a JSON object; got {str(asked)[:40]!r}")
    differ = differences(ours, _those_of(ours, theirs))
    if differ:
      raise wire.WireError(
        f"this site and the server differ (site -> server): {'; '.join(differ)}."
        " Run the same version, config and backbones on both"
      )
    client = _client(context)
    # A guard has clients weigh alike, and masks hide the weight in the sum.
    examples = 1 if guard or masks else trainer.num_examples(client)
    answer = ConfigRecord({wire.SITE: trainer.site(client), wire.NUM_EXAMPLES: examples})
    return Message(RecordDict({wire.CONFIG: answer}), reply_to=message)

  if masks:
    masks.register(app, _client)
  return app


def _client(context: Context) -> int:
  if "partition-id" not in context.node_config:
    raise ValueError("node config: expected partition-id=<index of this site>; it is missing")
  return int(context.node_config["partition-id"])


def _those_of(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
  """Their values of the names that we have."""
  return {
    name: _those_of(value, theirs[name])
    if isinstance(value, dict) and isinstance(theirs[name], dict)
    else theirs[name]
    for name, value in ours.items()
    if name in theirs
  }
