"""The round loop: select, send, collect, screen, aggregate, evaluate, write, checkpoint.

Ours and not Flower's, because exact resume, seeded selection and screening belong in it.

A round's lines are written before its checkpoint, and a start drops the lines that are newer
than the checkpoint it goes on from. So a run killed at any moment repeats at most one round, and
ends with the same lines and params as one that was never interrupted.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
from flwr.app import ConfigRecord, RecordDict
from flwr.serverapp import Grid

from afspl_jax.config.experiment import Fed
from afspl_jax.federation.privacy.server_release import BudgetSpent
from afspl_jax.federation.protocol import uplink, wire
from afspl_jax.federation.server.aggregation import Aggregation, Collected, PlainAggregation
from afspl_jax.federation.server.progress import SILENT, MetricsLine, Progress, RoundReport
from afspl_jax.federation.server.roll_call import RollCall
from afspl_jax.federation.server.round_request import (
  Chosen,
  ClientLine,
  RoundFailed,
  TooFewSites,
  TrainRequest,
)
from afspl_jax.federation.server.routing import site_routing, with_routing
from afspl_jax.federation.server.site_statistics import gather_statistics
from afspl_jax.federation.server.sites import Sites
from afspl_jax.federation.strategies import Controlled, Strategy
from afspl_jax.models.prompter.site_prompts import SITES, fixed_leaves
from afspl_jax.storage.checkpoints import Checkpoints
from afspl_jax.storage.client_status import Outcome, Status
from afspl_jax.storage.run_folder import RunFolder
from afspl_jax.types import Params


@dataclass(frozen=True)
class Plan:
  """A federated run, from the server's side."""

  params: Params  # of the untrained model: round 0, and the template of every payload
  strategy: Strategy
  fed: Fed
  seed: int
  folder: RunFolder
  checkpoints: Checkpoints
  evaluate: Callable[[int, Params], dict[str, float] | None]  # None: the round is not scored
  terms: dict[str, Any] = field(default_factory=dict)  # what sites must have in common with us
  weighing: str = "coverage"  # config's `uplink.weighing`
  ema: float = 0.0  # config's `eval.ema`
  aggregation: Aggregation = PlainAggregation()  # noqa: RUF009 - it has no state


def run_rounds(grid: Grid, plan: Plan, num_sites: int, progress: Progress = SILENT) -> Params:
  """Runs the rounds that are still to do, from the newest checkpoint on.

  Round 0 only evaluates; if images are routed to sites, it first sets their keys. Every
  later round adds a line with split "train" to metrics.jsonl, and one with split "val" if it is
  scored. `bytes_up` and `bytes_down` are those since the previous line of the same split, `seconds`
  is the time of what the line reports, `clients` the number of sites in the round's average.

  Args:
    grid: reaches the sites.
    plan: what to do.
    num_sites: sites that are waited for at the start.
    progress: receives what happens.

  Returns:
    The params to score after the last round, with NumPy leaves.

  Raises:
    RoundFailed: too few sites, or too few valid replies in a round and in its retries.
  """
  done, state = newest_state(plan, progress)
  plan.folder.rewind(done)
  unscored = _train_lines_since_val(plan.folder.metrics())
  terms = wire.terms(plan.params, plan.terms)
  sites = Sites(grid, terms, plan.fed.max_examples, progress.site_changed)
  reported = plan.folder.clients()
  call = RollCall(grid, sites, plan.fed, plan.seed, num_sites, reported, progress.waiting)
  for round in range(done + 1, plan.fed.rounds + 1):
    trained = None
    if round == 0 and fixed_leaves(plan.params):
      state, traffic = _route(call, plan, progress)
      unscored.append(traffic)
    if round > 0:
      try:
        trained = _train_or_retry(call, plan, round, state, progress)
      except BudgetSpent as spent:
        progress.waiting(f"ending after round {round - 1} of {plan.fed.rounds}: {spent}")
        break
      state = trained.state
      unscored.append(trained.line)
    val = _evaluate(plan, round, scored_params(state), unscored)
    if val is not None:
      unscored = []
    report = RoundReport(
      round, trained and trained.line, val, _as_json(trained.clients if trained else ())
    )
    _write(plan, report)
    plan.checkpoints.save(round, state)
    progress.round_done(report)
  return scored_params(state)


def scored_params(state: dict[str, Any]) -> Params:
  """What is evaluated of a server's state: the moving average over rounds, where there is one."""
  return state.get("ema", state["params"])


def newest_state(plan: Plan, progress: Progress = SILENT) -> tuple[int, dict[str, Any]]:
  """The last finished round with its params and strategy state; -1 and the untrained before it.

  Damaged checkpoints are set aside, and `progress` is told. The run goes on from the newest whole
  one; what privacy has cost since then stays spent, since it is not in a checkpoint.
  """
  untrained = _untrained(plan, jax.device_get(plan.params))
  found = plan.checkpoints.restore_newest_whole(untrained, progress.waiting)
  return found or (-1, untrained)


def first_state(params: Params, strategy: Strategy, ema: float) -> dict[str, Any]:
  """A server's state before the first round; later ones have its structure."""
  state = {"params": params, "strategy_state": strategy.init(params)}
  return state | {"ema": params} if ema else state


def _untrained(plan: Plan, params: Params) -> dict[str, Any]:
  return first_state(params, plan.strategy, plan.ema) | plan.aggregation.first_state()


def _route(call: RollCall, plan: Plan, progress: Progress) -> tuple[dict[str, Any], MetricsLine]:
  """The state before round 1, with keys and query from the sites' images; and the bytes of that."""
  params = jax.device_get(plan.params)
  keys, kernel = params[SITES]["keys"], params[SITES]["query"]["kernel"]
  sites, width = call.present(), len(kernel)
  found = gather_statistics(call.exchange, sites, plan.fed, width, progress.site_changed)
  routing = site_routing(found.statistics, len(keys), plan.seed)
  return _untrained(plan, with_routing(params, routing)), found.traffic


class _TrainedRound(NamedTuple):
  """A round that was trained, and is not yet written."""

  state: dict[str, Any]  # the server's after it
  line: MetricsLine
  clients: list[ClientLine]  # those of failed attempts too


def _train_or_retry(
  call: RollCall, plan: Plan, round: int, state: dict[str, Any], progress: Progress
) -> _TrainedRound:
  """One round, tried again if it fails; the lines of a failed attempt stay."""
  earlier: list[ClientLine] = []
  left = plan.fed.retries
  while True:
    try:
      return _train(call, plan, round, state, earlier)
    except RoundFailed as error:
      call.learn(error.lines)
      for line in error.lines:
        if line.status.outcome is Outcome.OK:
          line.status = Status(Outcome.UNUSED, "this attempt at the round failed")
      earlier += error.lines
      if any(line.status.outcome is Outcome.SPENT for line in error.lines):
        left += 1  # they are not chosen again, so this attempt does not count
      if not left or isinstance(error, TooFewSites):
        plan.folder.append_clients(_as_json(earlier))
        raise RoundFailed(
          f"{error}. Nothing of this round was kept: put that right and start the same command"
          f" again to go on after round {round - 1}",
          earlier,
        ) from error
      left -= 1
      progress.waiting(f"{error}. Trying round {round} again")


def _train(
  call: RollCall, plan: Plan, round: int, state: dict[str, Any], earlier: Sequence[ClientLine]
) -> _TrainedRound:
  """One attempt at a round; `earlier` has the lines of those that failed."""
  chosen = call.choose(round)
  plan.aggregation.prepare(chosen.nodes)
  request = _request(plan, round, state, chosen)
  begin = time.perf_counter()
  collected = plan.aggregation.collect(call.exchange, request, plan.fed)
  call.learn(collected.lines)
  new_state = _aggregate(plan, round, state, collected)
  clients = [*earlier, *collected.lines]
  line = {
    **collected.metrics,  # first: no site's metric may stand for what follows
    "round": round,
    "split": "train",
    "bytes_up": sum(line.bytes_up for line in clients),
    "bytes_down": collected.bytes_down,
    "seconds": _seconds_since(begin),
    "clients": collected.clients,
  }
  if plan.ema:
    new_state["ema"] = _moved(state["ema"], new_state["params"], plan.ema, round)
  return _TrainedRound(new_state, line, clients)


def _request(plan: Plan, round: int, state: dict[str, Any], chosen: Chosen) -> TrainRequest:
  """What is sent to the round's sites."""
  params, bound = state["params"], plan.aggregation.bound(state)
  config = ConfigRecord({wire.STRUCTURE: wire.structure_digest(params), wire.ROUND: round})
  if bound is not None:
    config[wire.CLIP] = bound
  content = RecordDict({wire.ARRAYS: wire.pack(params), wire.CONFIG: config})
  if isinstance(plan.strategy, Controlled):
    content[wire.CONTROL] = wire.pack(plan.strategy.control(params, state["strategy_state"]))
  return TrainRequest(round, params, chosen, content, bound, fixed_leaves(params))


def _aggregate(
  plan: Plan, round: int, state: dict[str, Any], collected: Collected
) -> dict[str, Any]:
  """The server's state after the strategy has used the round's updates.

  Raises:
    RoundFailed: the strategy needs more of them.
  """
  params, updates = state["params"], collected.updates
  if plan.weighing == "cohort":  # what a site did not send counts as unchanged
    masks = uplink.without(uplink.everywhere(params), fixed_leaves(params))
    updates = [update._replace(masks=masks) for update in updates]
  try:
    new_params, new = plan.strategy.aggregate(params, state["strategy_state"], updates)
  except ValueError as error:
    raise RoundFailed(f"round {round}: {error}", collected.lines) from error
  return jax.device_get({"params": new_params, "strategy_state": new, **collected.kept})


def _moved(ema: Params, params: Params, decay: float, round: int) -> Params:
  """The moving average of the global params; a plain mean until `decay` would weigh more."""
  decay = min(decay, 1 - 1 / round)
  return jax.tree.map(lambda a, p: (decay * a + (1 - decay) * p).astype(p.dtype), ema, params)


def _evaluate(
  plan: Plan, round: int, params: Params, unscored: list[MetricsLine]
) -> MetricsLine | None:
  """The round's "val" line, or None if the round is not scored."""
  begin = time.perf_counter()
  scores = plan.evaluate(round, params)
  if scores is None:
    return None
  return {
    "round": round,
    "split": "val",
    **scores,
    "bytes_up": sum(line["bytes_up"] for line in unscored),
    "bytes_down": sum(line["bytes_down"] for line in unscored),
    "seconds": _seconds_since(begin),
    "clients": unscored[-1]["clients"] if unscored else 0,
  }


def _train_lines_since_val(lines: list[MetricsLine]) -> list[MetricsLine]:
  """What the next "val" line counts the bytes of, after a restart."""
  rounds = [line["round"] for line in lines if line["split"] == "val"]
  last = max(rounds, default=-1)
  return [line for line in lines if line["split"] == "train" and line["round"] > last]


def _write(plan: Plan, report: RoundReport) -> None:
  """Puts a round's lines on disk."""
  plan.folder.append_clients(report.clients)
  for line in (report.train, report.val):
    if line is not None:
      plan.folder.append_metrics(line)


def _as_json(lines: Sequence[ClientLine]) -> list[dict[str, Any]]:
  return [line.as_json() for line in lines]


def _seconds_since(begin: float) -> float:
  return round(time.perf_counter() - begin, 3)
