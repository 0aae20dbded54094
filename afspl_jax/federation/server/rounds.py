"""The round loop: select, send, collect, screen, aggregate, evaluate, write, checkpoint.

Ours and not Flower's, because exact resume, seeded selection and screening belong in it.

A round's lines are written before its checkpoint, and a start drops the lines that are newer
than the checkpoint it goes on from. So a run killed at any moment repeats at most one round, and
ends with the same lines and params as one that was never interrupted.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
from flwr.app import ConfigRecord, RecordDict
from flwr.serverapp import Grid

from afspl_jax.config.experiment import Fed, Uplink
from afspl_jax.federation.privacy.server_release import BudgetSpent, Release
from afspl_jax.federation.protocol import uplink, wire
from afspl_jax.federation.secure.terms import Terms
from afspl_jax.federation.server.aggregation import hear_each, hear_sum
from afspl_jax.federation.server.collect_replies import Asked, Line
from afspl_jax.federation.server.roll_call import RollCall, RoundFailed, TooFewSites
from afspl_jax.federation.server.sites import Sites
from afspl_jax.federation.strategies import Controlled, Strategy
from afspl_jax.storage.checkpoints import Checkpoints
from afspl_jax.storage.run_folder import RunFolder
from afspl_jax.types import Params


class RoundReport(NamedTuple):
  """What a finished round wrote to the run's folder."""

  round: int
  train: Line | None  # None for round 0
  val: Line | None  # None if the round was not scored
  clients: list[Line]


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
  private: Release | None = None  # where less than every site's update may be learnt
  secure: Terms | None = None  # where the server itself learns no more than their sum
  uplink: Uplink = field(default_factory=Uplink)  # of which rows there are sums
  on_round: Callable[[RoundReport], None] = lambda report: None
  say: Callable[[str], None] = lambda text: None  # tells the user of waits and retries
  on_site: Callable[[str], None] = lambda text: None  # and of sites that come, go, are refused


def run_rounds(grid: Grid, plan: Plan, num_sites: int) -> Params:
  """Runs the rounds that are still to do, from the newest checkpoint on.

  Round 0 only evaluates. Every later round adds a line with split "train" to metrics.jsonl, and
  one with split "val" if it is scored. `bytes_up` and `bytes_down` are those since the previous
  line of the same split, `seconds` is the time of what the line reports, `clients` the number of
  sites in the round's average.

  Args:
    grid: reaches the sites.
    plan: what to do.
    num_sites: sites that are waited for at the start.

  Returns:
    The params to score after the last round, with NumPy leaves.

  Raises:
    RoundFailed: too few sites, or too few valid replies in a round and in its retries.
  """
  done, state = newest_state(plan)
  plan.folder.rewind(done)
  unscored = _train_lines_since_val(plan.folder.metrics())
  terms = wire.terms(plan.params, plan.terms)
  sites = Sites(grid, terms, plan.fed.max_examples, plan.on_site)
  lines = plan.folder.clients()
  call = RollCall(grid, sites, plan.fed, plan.seed, num_sites, lines, plan.say)
  for round in range(done + 1, plan.fed.rounds + 1):
    train: Line | None = None
    clients: list[Line] = []
    if round > 0:
      try:
        state, train, clients = _train_or_retry(call, plan, round, state)
      except BudgetSpent as spent:
        plan.say(f"ending after round {round - 1} of {plan.fed.rounds}: {spent}")
        break
      unscored.append(train)
    val = _evaluate(plan, round, scored_params(state), unscored)
    if val is not None:
      unscored = []
    plan.folder.append_clients(clients)
    for line in (train, val):
      if line is not None:
        plan.folder.append_metrics(line)
    plan.checkpoints.save(round, state)
    plan.on_round(RoundReport(round, train, val, clients))
  return scored_params(state)


def scored_params(state: dict[str, Any]) -> Params:
  """What is evaluated of a server's state: the moving average over rounds, where there is one."""
  return state.get("ema", state["params"])


def newest_state(plan: Plan) -> tuple[int, dict[str, Any]]:
  """The last finished round with its params and strategy state; -1 and the untrained before it."""
  untrained = first_state(jax.device_get(plan.params), plan.strategy, plan.ema)
  if plan.private is not None:
    untrained |= plan.private.first_state()
  return plan.checkpoints.restore(untrained) or (-1, untrained)


def first_state(params: Params, strategy: Strategy, ema: float) -> dict[str, Any]:
  """A server's state before the first round; later ones have its structure."""
  state = {"params": params, "strategy_state": strategy.init(params)}
  return state | {"ema": params} if ema else state


def _train_or_retry(
  call: RollCall, plan: Plan, round: int, state: dict[str, Any]
) -> tuple[dict[str, Any], Line, list[Line]]:
  """One round, tried again where it fails: the new state, its line, and all lines of sites."""
  lines: list[Line] = []  # those of a failed attempt stay
  left = plan.fed.retries
  while True:
    try:
      return *_train(call, plan, round, state, lines), lines
    except RoundFailed as error:
      for line in lines:
        if line["status"] == "ok":
          line["status"] = "unused: this attempt at the round failed"
      if not left or isinstance(error, TooFewSites):
        plan.folder.append_clients(lines)
        raise RoundFailed(
          f"{error}. Nothing of this round was kept: put that right and start the same command"
          f" again to go on after round {round - 1}"
        ) from error
      left -= 1
      plan.say(f"{error}. Trying round {round} again")


def _train(
  call: RollCall, plan: Plan, round: int, state: dict[str, Any], clients: list[Line]
) -> tuple[dict[str, Any], Line]:
  """One attempt at a round: the new state and its line; adds the sites' lines to `clients`."""
  params, private = state["params"], plan.private
  chosen = call.choose(round)
  if private is not None:
    private.afford(chosen.nodes)
  config = ConfigRecord({wire.STRUCTURE: wire.structure_digest(params), wire.ROUND: round})
  content = RecordDict({wire.ARRAYS: wire.pack(params), wire.CONFIG: config})
  bound = None if private is None else private.bound(state)
  if bound is not None:
    config[wire.CLIP] = bound
  if isinstance(plan.strategy, Controlled):
    control = plan.strategy.control(params, state["strategy_state"])
    content[wire.CONTROL] = wire.pack(control)
  begin = time.perf_counter()
  asked = Asked(call, chosen, content, round, plan.fed, params, bound)
  if plan.secure is None:
    heard = hear_each(asked, private, clients)
  else:
    rows = uplink.drawn(params, plan.uplink, (plan.seed, round))
    heard = hear_sum(asked, plan.secure, rows, clients, private=private is not None)
  replies, means = heard.replies, heard.means
  kept: dict[str, Any] = {}
  if private is not None and heard.total is not None:
    replies, means, kept = private.combine(params, heard.total, state, round, chosen.nodes)
  if plan.weighing == "cohort":  # what a site did not send counts as unchanged
    replies = [reply._replace(masks=uplink.everywhere(params)) for reply in replies]
  try:
    aggregated = plan.strategy.aggregate(params, state["strategy_state"], replies)
  except ValueError as error:
    raise RoundFailed(f"round {round}: {error}") from error
  train = {
    **means,  # first: no site's metric may stand for what follows
    "round": round,
    "split": "train",
    "bytes_up": sum(line["bytes_up"] for line in clients),
    "bytes_down": heard.bytes_down,
    "seconds": _seconds_since(begin),
    "clients": heard.clients,
  }
  new_params, strategy_state = aggregated
  new_state = jax.device_get({"params": new_params, "strategy_state": strategy_state, **kept})
  if plan.ema:
    new_state["ema"] = _moved(state["ema"], new_state["params"], plan.ema, round)
  return new_state, train


def _moved(ema: Params, params: Params, decay: float, round: int) -> Params:
  """The moving average of the global params; a plain mean until `decay` would weigh more."""
  decay = min(decay, 1 - 1 / round)
  return jax.tree.map(lambda a, p: (decay * a + (1 - decay) * p).astype(p.dtype), ema, params)


def _evaluate(plan: Plan, round: int, params: Params, unscored: list[Line]) -> Line | None:
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


def _train_lines_since_val(lines: list[Line]) -> list[Line]:
  """What the next "val" line counts the bytes of, after a restart."""
  rounds = [line["round"] for line in lines if line["split"] == "val"]
  last = max(rounds, default=-1)
  return [line for line in lines if line["split"] == "train" and line["round"] > last]


def _seconds_since(begin: float) -> float:
  return round(time.perf_counter() - begin, 3)
