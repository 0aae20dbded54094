"""Asks every connected site for its image statistics, and checks the answers before their use."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from flwr.app import Message, RecordDict

from afspl_jax.config.experiment import Fed
from afspl_jax.federation.contracts import Rejected
from afspl_jax.federation.protocol import wire
from afspl_jax.federation.protocol.image_statistics import (
  COVARIANCE,
  MEAN,
  RECORD,
  STATISTICS,
  ImageStatistics,
  triangle_size,
)
from afspl_jax.federation.server.exchange import Answer, Exchange
from afspl_jax.federation.server.round_request import RoundFailed
from afspl_jax.federation.server.screening import outcome_of_error, screen_examples
from afspl_jax.federation.server.sites import ConnectedSite
from afspl_jax.storage.client_status import Outcome

_SLACK = 1e-4  # of the bound on a second moment; float32 rounds
_ROUNDING = 1e-6  # an eigenvalue of a rounded covariance may be as far below 0

_RECORDS = {RECORD: "ArrayRecord", wire.CONFIG: "ConfigRecord"}


class Gathered(NamedTuple):
  """What the sites answered."""

  statistics: dict[str, ImageStatistics]  # the valid ones, by site
  traffic: dict[str, Any]  # bytes in both directions and valid answers, as in a line of a round


def gather_statistics(
  exchange: Exchange[str],
  sites: Mapping[str, ConnectedSite],
  fed: Fed,
  width: int,
  say: Callable[[str], None],
) -> Gathered:
  """Sends every site one message, and keeps the valid answers.

  Args:
    exchange: reaches the sites.
    sites: the connected ones, by name.
    fed: sets the deadline, the largest number of examples and the fewest answers.
    width: f, of the features.
    say: gets a line about every site that is left out.

  Raises:
    RoundFailed: fewer valid answers than `fed.min_replies`.
  """
  messages = {
    name: Message(RecordDict(), site.node, STATISTICS, group_id="0") for name, site in sites.items()
  }
  answers, _ = exchange.ask(messages, 0, fed.deadline)
  found, reasons, bytes_up = {}, [], 0
  for name, answer in sorted(answers.items()):
    bytes_up += 0 if answer.message is None else wire.record_bytes(answer.message)
    try:
      found[name] = screen_statistics(_message(answer, fed.deadline), width, fed.max_examples)
    except Rejected as error:
      reasons.append(f"{name}: left out of the routing: {error.status}")
      say(reasons[-1])
  if len(found) < fed.min_replies:
    raise RoundFailed(
      f"prompter.routing: expected image statistics of at least {fed.min_replies} sites; got"
      f" {len(found)}. {'; '.join(reasons)}. Put that right and start the same command again"
    )
  bytes_down = sum(map(wire.record_bytes, messages.values()))
  traffic = {"bytes_up": bytes_up, "bytes_down": bytes_down, "clients": len(found)}
  return Gathered(found, traffic)


def screen_statistics(answer: Message, width: int, most_examples: int) -> ImageStatistics:
  """The statistics of a site's answer, if these can be statistics of unit vectors.

  Args:
    answer: from a site that may not be trusted.
    width: f, of the features.
    most_examples: the largest number of examples.

  Raises:
    Rejected: they cannot, or the answer does not follow the protocol; with the reason.
  """
  if answer.has_error():
    reason = answer.error.reason or f"Flower error {answer.error.code}"
    raise Rejected(reason, outcome_of_error(reason))
  found = {name: type(record).__name__ for name, record in answer.content.items()}
  if found != _RECORDS:
    raise Rejected(f"expected the records {_RECORDS}; got {found}")
  number = screen_examples(answer.content[wire.CONFIG].get(wire.NUM_EXAMPLES), most_examples)
  arrays = answer.content[RECORD]
  if set(arrays) != {MEAN, COVARIANCE}:
    raise Rejected(f"expected the arrays {MEAN!r} and {COVARIANCE!r}; got {sorted(arrays)}")
  sizes = {MEAN: width, COVARIANCE: triangle_size(width)}
  try:
    mean, triangle = (
      wire.decode_array(name, arrays[name], np.dtype(np.float32), size)
      for name, size in sizes.items()
    )
  except wire.WireError as error:
    raise Rejected(f"{error}") from error
  for name, values in ((MEAN, mean), (COVARIANCE, triangle)):
    if bad := values.size - np.count_nonzero(np.isfinite(values)):
      raise Rejected(f"{name}: expected finite values; {bad} of {values.size} are not")
  _check_moments(mean.astype(np.float64), triangle.astype(np.float64))
  return ImageStatistics(number, mean, triangle)


def _check_moments(mean: np.ndarray, triangle: np.ndarray) -> None:
  """Raises Rejected unless some vectors of at most unit length have this mean and covariance."""
  covariance = np.zeros((len(mean), len(mean)))
  covariance[np.triu_indices(len(mean))] = triangle
  moment = mean @ mean + np.trace(covariance)
  if not moment <= 1 + _SLACK:
    raise Rejected(
      f"expected the squared norm of {MEAN!r} and the trace of {COVARIANCE!r} to add up to at"
      f" most 1; got {moment:g}"
    )
  least = np.linalg.eigvalsh(covariance, "U")[0]
  if not least >= -_ROUNDING:
    raise Rejected(f"{COVARIANCE}: expected no eigenvalue below 0; got {least:g}")


def _message(answer: Answer, deadline: float) -> Message:
  if answer.message is None and answer.sent:
    raise Rejected(f"no reply within {deadline:g} s", Outcome.TIMEOUT)
  if answer.message is None:
    raise Rejected("not reached", Outcome.FAILED)
  return answer.message
