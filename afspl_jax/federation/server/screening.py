"""The checks of a site's reply before it is used."""

import math
import re
from collections.abc import Collection
from typing import Any

from flwr.app import Message

from afspl_jax.config.experiment import Fed
from afspl_jax.federation.contracts import Rejected, SiteSpent, Update
from afspl_jax.federation.privacy.clipping import norm
from afspl_jax.federation.protocol import uplink, wire
from afspl_jax.storage.client_status import Outcome, one_line
from afspl_jax.storage.pytrees import named_leaves
from afspl_jax.types import Params

_MOST_METRICS = 1 << 17  # one for every prompt of the largest pool
_METRIC = re.compile(r"[A-Za-z0-9_-]{1,80}")  # the name becomes a key of our files

_RECORDS = {wire.ARRAYS: "ArrayRecord", wire.METRICS: "MetricRecord", wire.CONFIG: "ConfigRecord"}


def screen(
  site: str,
  answer: Message,
  params: Params,
  structure: str,
  fed: Fed,
  controlled: bool,
  fixed: Collection[str] = (),
) -> Update:
  """The update of a site's reply, if the reply follows the protocol.

  Args:
    site: its name.
    answer: its message.
    params: the global params that it started from.
    structure: their digest.
    fed: sets the largest number of examples and the largest norm of an update.
    controlled: whether sites got a control, and reply with the change of theirs.
    fixed: names of leaves that nobody trains.

  Raises:
    Rejected: it does not; with the reason.
  """
  if answer.has_error():
    reason = answer.error.reason or f"Flower error {answer.error.code}"
    raise Rejected(reason, outcome_of_error(reason))
  expected = _RECORDS | ({wire.CONTROL: "ArrayRecord"} if controlled else {})
  found = {name: type(record).__name__ for name, record in answer.content.items()}
  if found != expected:
    raise Rejected(f"expected the records {expected}; got {found}")
  theirs = answer.content[wire.CONFIG].get(wire.STRUCTURE)
  if theirs != structure:
    raise Rejected(f"expected params of structure {structure}; got {theirs}")
  metrics = dict(answer.content[wire.METRICS])
  if len(metrics) > _MOST_METRICS or not all(map(_METRIC.fullmatch, metrics)):
    raise Rejected(
      f"expected at most {_MOST_METRICS} metrics by names such as 'loss'; got"
      f" {len(metrics)}: {one_line(', '.join(sorted(metrics)[:9]))}"
    )
  num_examples = screen_examples(metrics.pop(wire.NUM_EXAMPLES, None), fed.max_examples)
  for name, value in metrics.items():
    if not isinstance(value, int | float) or not math.isfinite(value):
      raise Rejected(f"{name}: expected a finite number; got {value!r}")
  try:
    sent, masks = wire.unpack_update(answer.content[wire.ARRAYS], params)
  except wire.WireError as error:
    raise Rejected(f"{error}") from error
  for name, mask in named_leaves(masks).items():
    if name in fixed and mask.any():
      raise Rejected(f"{name}: expected no rows, since nobody trains it; got {mask.sum()}")
  most = fed.max_update_norm
  if most and (size := norm(uplink.added(sent, params))) > most:
    raise Rejected(
      f"expected an update of L2 norm up to {most:g} (fed.max_update_norm); got {size:g}"
    )
  control = None
  if controlled:
    try:
      control = wire.unpack(answer.content[wire.CONTROL], params)
    except wire.WireError as error:
      raise Rejected(f"{wire.CONTROL}: {error}") from error
  means = {name: float(value) for name, value in metrics.items()}
  return Update(site, sent, masks, num_examples, means, control)


def outcome_of_error(reason: str) -> Outcome:
  """The outcome of a site that replied with an error."""
  return Outcome.SPENT if reason.startswith(f"{SiteSpent.__name__}: ") else Outcome.FAILED


def screen_examples(claimed: Any, most: int) -> int:
  """The number of examples that a site reports: its weight in the average.

  Raises:
    Rejected: not a positive int, or more than `most`.
  """
  if type(claimed) is not int or not 0 < claimed <= most:
    raise Rejected(
      f"{wire.NUM_EXAMPLES}: expected an int from 1 to {most} (fed.max_examples);"
      f" got {one_line(repr(claimed))}"
    )
  return claimed
