"""The server's work in a round: checks and averages the replies of 1,000 clients."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from afspl_jax.config.experiment import Fed, Uplink
from afspl_jax.federation import strategies
from afspl_jax.federation.protocol import uplink, wire
from afspl_jax.federation.server.screening import screen
from afspl_jax.federation.transport.local_grid import LocalGrid
from afspl_jax.models.prompter.local import split_local
from afspl_jax.storage.pytrees import zeros_like
from afspl_jax.types import Params
from benchmarks.bench import Bench
from benchmarks.case import Case, write_backbones
from benchmarks.compare import OURS, in_turn
from benchmarks.process import Child
from benchmarks.table import Line, compared

FLOWER = "Flower's FedAvg"


def aggregation(bench: Bench) -> Iterator[Line]:
  """Measures dense and sparse updates of the prompter for flan-t5-small."""
  case, number = Case(), 100 if bench.quick else 1000
  folders = write_backbones(case, bench.folder)
  with Child("benchmarks.sides.afspl:untrained", case, folders) as child:
    params, _ = split_local(child.built.value)
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  for select in ("dense", "energy"):
    names = (OURS, FLOWER) if select == "dense" else (OURS,)
    with contextlib.ExitStack() as stack:
      sides = {
        name: stack.enter_context(
          Child("benchmarks.work.server:Server", name, params, select, number)
        )
        for name in names
      }
      up, down = sides[OURS]("bytes").value
      measured = in_turn(sides, bench.turns, "aggregate")
      yield compared(
        f"{number:,} replies of {size / 1e6:.2f} MB, {select}",
        measured,
        floor=number * up / bench.rates.read,
        note=f"each {up / 1e3:,.0f} kB up, {down / 1e3:,.0f} kB down",
      )


class Server:
  """Holds replies and aggregates them repeatedly.

  Args:
    name: ours, which checks every reply, or Flower's, with one array per leaf.
    params: the shared leaves.
    select: `uplink.select`, which part of an update is sent.
    number: number of replies.
  """

  def __init__(self, name: str, params: Params, select: str, number: int):
    LocalGrid(ClientApp(), 1)  # sets the sender of messages
    self._ours, self._params = name == OURS, params
    self._structure = wire.structure_digest(params)
    rng = np.random.default_rng(0)
    moved = jax.tree.map(lambda x: x + rng.normal(size=x.shape).astype(x.dtype) ** 3, params)
    config = Uplink(select=select)
    sent = uplink.compress(moved, params, zeros_like(params), config)
    ask = Message(RecordDict({wire.ARRAYS: wire.pack(params)}), 2, wire.TRAIN)
    self._bytes = tuple(
      wire.record_bytes(Message(RecordDict({wire.ARRAYS: record}), 2, wire.TRAIN))
      for record in (wire.pack(sent.params, sent.masks), wire.pack(params))
    )
    self._replies = []
    for _ in range(number):  # separate copies, as from a network
      arrays = wire.pack(sent.params, sent.masks) if self._ours else _named(sent.params)
      content = {wire.ARRAYS: arrays, wire.METRICS: MetricRecord({wire.NUM_EXAMPLES: 10})}
      if self._ours:
        content[wire.CONFIG] = ConfigRecord({wire.STRUCTURE: self._structure})
      self._replies.append(Message(RecordDict(content), reply_to=ask))

  def bytes(self) -> tuple[int, ...]:
    """Returns the bytes of a reply and of a request on the wire."""
    return self._bytes

  def aggregate(self) -> None:
    """Aggregates all replies to new params."""
    if not self._ours:
      arrays, _ = FedAvg(weighted_by_key=wire.NUM_EXAMPLES).aggregate_train(1, self._replies)
      assert arrays is not None
      return
    strategy = strategies.get_strategy("fedavg", len(self._replies))
    replies = [
      screen(f"site{i}", reply, self._params, self._structure, Fed(), False)
      for i, reply in enumerate(self._replies)
    ]
    strategy.aggregate(self._params, strategy.init(self._params), replies)


def _named(params: Params) -> ArrayRecord:
  leaves: dict[str, Any] = {
    jax.tree_util.keystr(path, simple=True, separator="/"): Array(np.asarray(leaf))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }
  return ArrayRecord(leaves)
