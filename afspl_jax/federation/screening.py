"""What the server checks of a site's reply before it is used."""

import math

from flwr.app import Message

from afspl_jax.federation import wire
from afspl_jax.federation.strategies import Reply
from afspl_jax.types import Params

# Its product with a float32 is exact in float64, so the average of equal params is those params.
MAX_EXAMPLES = 2**29

_RECORDS = {wire.ARRAYS: "ArrayRecord", wire.METRICS: "MetricRecord", wire.CONFIG: "ConfigRecord"}


class Refused(ValueError):
  """A reply that is left out; the message is its status in clients.jsonl."""


def screen(site: str, answer: Message | None, params: Params, structure: str) -> Reply:
  """The site's reply, if all of it is what was agreed on.

  Raises:
    Refused: otherwise, with the reason.
  """
  if answer is None:
    raise Refused("failed: no reply")
  if answer.has_error():
    raise Refused(f"failed: {answer.error.reason or f'Flower error {answer.error.code}'}")
  found = {name: type(record).__name__ for name, record in answer.content.items()}
  if found != _RECORDS:
    raise Refused(f"rejected: expected the records {_RECORDS}; got {found}")
  theirs = answer.content[wire.CONFIG].get(wire.STRUCTURE)
  if theirs != structure:
    raise Refused(f"rejected: expected params of structure {structure}; got {theirs}")
  metrics = dict(answer.content[wire.METRICS])
  num_examples = metrics.pop(wire.NUM_EXAMPLES, None)
  if type(num_examples) is not int or not 0 < num_examples <= MAX_EXAMPLES:
    raise Refused(
      f"rejected: {wire.NUM_EXAMPLES}: expected an int from 1 to {MAX_EXAMPLES}; "
      f"got {num_examples!r}"
    )
  for name, value in metrics.items():
    if not isinstance(value, int | float) or not math.isfinite(value):
      raise Refused(f"rejected: {name}: expected a finite number; got {value!r}")
  try:
    update = wire.unpack_update(answer.content[wire.ARRAYS], params)
  except wire.WireError as error:
    raise Refused(f"rejected: {error}") from error
  means = {name: float(value) for name, value in metrics.items()}
  return Reply(site, update.params, update.masks, num_examples, means)
