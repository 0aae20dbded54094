"""Means of replies, row by row over the sites that sent the row, in float64.

Rows are those of federation/uplink.py. Every sum goes over the replies as `in_order` gives them,
so that no result depends on the order in which they came.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from afspl_jax.federation.contracts import Update
from afspl_jax.federation.protocol.uplink import added
from afspl_jax.storage.pytrees import zeros_like
from afspl_jax.types import Params


class Mean(NamedTuple):
  """A mean of every row, and which rows it is of."""

  values: Params  # float64, of the params' shapes; 0 in rows that nobody sent
  sent: Params  # bool, broadcastable to the leaves: rows that at least one site sent


def in_order(replies: Sequence[Update]) -> list[Update]:
  """The replies by the names of their sites."""
  return sorted(replies, key=lambda reply: reply.site)


def updates(params: Params, replies: Sequence[Update]) -> Iterator[Params]:
  """What each site added to the global params, in float64; one at a time, as they are large."""
  return (added(reply.params, params) for reply in replies)


def weighted_mean(
  values: Iterable[Params], replies: Sequence[Update], weights: Sequence[float | int]
) -> Mean:
  """The weighted mean of every row over the sites that sent it.

  Args:
    values: what to average: a tree for each reply, like its params; read once, one by one.
    replies: in order; their masks say who sent what.
    weights: one for each reply, from 0 on.
  """
  sums, rooms = (zeros_like(replies[0].params, np.float64) for _ in range(2))
  totals = zeros_like(replies[0].masks, np.float64)

  def add(total, share, sum_, value, room):
    total += share
    # A buffer for each leaf, used again for every reply: 1.1 × of the server's part of a round.
    np.copyto(room, value)
    room *= share
    sum_ += room

  for value, reply, weight in zip(values, replies, weights, strict=True):
    shares = jax.tree.map(lambda mask: weight * mask, reply.masks)  # noqa: B023 - used at once
    jax.tree.map(add, totals, shares, sums, value, rooms)
  means = jax.tree.map(lambda sum_, total: sum_ / np.where(total > 0, total, 1), sums, totals)
  return Mean(means, _sent(replies))


def mean_update(params: Params, replies: Sequence[Update]) -> Mean:
  """What the sites added to the global params on average, weighted by their examples."""
  replies = in_order(replies)
  weights = [reply.num_examples for reply in replies]
  return weighted_mean(updates(params, replies), replies, weights)


def middle_mean(replies: Sequence[Update], cut: Callable[[int], int]) -> Mean:
  """The plain mean, entry by entry, of what is left of a row's senders without the extremes.

  Args:
    replies: in order.
    cut: how many values to leave out at each end, by the number of senders of the row.
  """
  cuts = np.array([cut(senders) for senders in range(len(replies) + 1)])

  def of_leaf(*leaves_and_masks):
    leaves, masks = leaves_and_masks[: len(replies)], leaves_and_masks[len(replies) :]
    stacked, present = np.stack(leaves).astype(np.float64), np.stack(masks)
    values = np.sort(np.where(present, stacked, np.inf), axis=0)  # those not sent come last
    senders = present.sum(axis=0)
    rank = np.arange(len(replies)).reshape(-1, *[1] * (stacked.ndim - 1))
    kept = (rank >= cuts[senders]) & (rank < senders - cuts[senders])
    return sum(np.where(kept, values, 0)) / np.maximum(kept.sum(axis=0), 1)

  trees = [*(reply.params for reply in replies), *(reply.masks for reply in replies)]
  return Mean(jax.tree.map(of_leaf, *trees), _sent(replies))


def _sent(replies: Sequence[Update]) -> Params:
  return jax.tree.map(lambda *masks: sum(masks) > 0, *(reply.masks for reply in replies))
