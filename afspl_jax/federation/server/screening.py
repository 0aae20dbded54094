"""What the server checks of a site's reply before it is used."""

import math
import re
from typing import Any

from flwr.app import Message

from afspl_jax.config.experiment import Fed
from afspl_jax.federation.contracts import Refused, Update
from afspl_jax.federation.privacy.clipping import norm
from afspl_jax.federation.protocol import uplink, wire
from afspl_jax.types import Params

_LONGEST_REASON = 300  # characters of what a peer says that go into our files

_MOST_METRICS = 1 << 17  # every prompt of the largest pool has one
_METRIC = re.compile(r"[A-Za-z0-9_-]{1,80}")  # a key of our files, and of what reads them

_RECORDS = {wire.ARRAYS: "ArrayRecord", wire.METRICS: "MetricRecord", wire.CONFIG: "ConfigRecord"}


def sentence(said: str) -> str:
  """What a peer says, as far as it goes into our files and onto a terminal: one short line."""
  line = " ".join("".join(c if c.isprintable() else " " for c in said).split())
  return line[:_LONGEST_REASON]


def screen(
  site: str, answer: Message, params: Params, structure: str, fed: Fed, controlled: bool
) -> Update:
  """The site's reply, if all of it is what was agreed on.

  Args:
    site: its name.
    answer: its message.
    params: the global params that it started from.
    structure: their digest.
    fed: sets the bounds on what a site claims and on how far it moves the params.
    controlled: whether sites were sent a control, and answer with what they added to theirs.

  Raises:
    Refused: otherwise, with the reason.
  """
  if answer.has_error():
    raise Refused(f"failed: {answer.error.reason or f'Flower error {answer.error.code}'}")
  expected = _RECORDS | ({wire.CONTROL: "ArrayRecord"} if controlled else {})
  found = {name: type(record).__name__ for name, record in answer.content.items()}
  if found != expected:
    raise Refused(f"rejected: expected the records {expected}; got {found}")
  theirs = answer.content[wire.CONFIG].get(wire.STRUCTURE)
  if theirs != structure:
    raise Refused(f"rejected: expected params of structure {structure}; got {theirs}")
  metrics = dict(answer.content[wire.METRICS])
  if len(metrics) > _MOST_METRICS or not all(map(_METRIC.fullmatch, metrics)):
    raise Refused(
      f"rejected: expected at most {_MOST_METRICS} metrics by names such as 'loss'; got"
      f" {len(metrics)}: {sentence(', '.join(sorted(metrics)[:9]))}"
    )
  num_examples = screen_examples(metrics.pop(wire.NUM_EXAMPLES, None), fed.max_examples)
  for name, value in metrics.items():
    if not isinstance(value, int | float) or not math.isfinite(value):
      raise Refused(f"rejected: {name}: expected a finite number; got {value!r}")
  try:
    sent, masks = wire.unpack_update(answer.content[wire.ARRAYS], params)
  except wire.WireError as error:
    raise Refused(f"rejected: {error}") from error
  most = fed.max_update_norm
  if most and (size := norm(uplink.added(sent, params))) > most:
    raise Refused(
      f"rejected: expected an update of L2 norm up to {most:g} (fed.max_update_norm); got {size:g}"
    )
  control = None
  if controlled:
    try:
      control = wire.unpack(answer.content[wire.CONTROL], params)
    except wire.WireError as error:
      raise Refused(f"rejected: {wire.CONTROL}: {error}") from error
  means = {name: float(value) for name, value in metrics.items()}
  return Update(site, sent, masks, num_examples, means, control)


def screen_examples(claimed: Any, most: int) -> int:
  """The number of examples that a site says it holds: its weight in the average.

  Raises:
    Refused: it is none, or more than `most`.
  """
  if type(claimed) is not int or not 0 < claimed <= most:
    raise Refused(
      f"rejected: {wire.NUM_EXAMPLES}: expected an int from 1 to {most} (fed.max_examples);"
      f" got {sentence(repr(claimed))}"
    )
  return claimed
