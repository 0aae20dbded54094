"""Repeats a run in this process, told which replies counted, and compares every bit.

What a site sends depends on its local state, and that on the rounds in which it trained, whether
or not its reply counted: a site that is killed after training goes on from the state that it has
saved. So the replay is told both: the replies that counted, from clients.jsonl, and the rounds in
which a site saved a state, from its folder.
"""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from afspl_jax.config.experiment import Experiment, to_dict
from afspl_jax.federation.client.client_store import ClientStore
from afspl_jax.federation.contracts import SiteError, Trainer, Update
from afspl_jax.federation.server.rounds import Plan, newest_state
from afspl_jax.federation.server.server_app import run_local
from afspl_jax.runs.prepare import SITE_SPLITS, Setup, find_inputs, prepare_setup
from afspl_jax.runs.run import plan_of
from afspl_jax.storage.checkpoints import Checkpoints
from afspl_jax.storage.client_status import Outcome, parse_status
from afspl_jax.storage.pytrees import named_leaves
from afspl_jax.storage.run_folder import RunFolder
from afspl_jax.storage.run_lines import CLIENTS, RunLine, read_lines
from afspl_jax.types import Params

ByRound = Mapping[int, Collection[str]]  # sites by round


class Told(NamedTuple):
  """What a replay is told."""

  trained: ByRound  # a state was saved
  counted: ByRound  # the reply is in the average


def told(lines: Iterable[RunLine], saved: Mapping[str, Collection[int]]) -> Told:
  """What a replay must know of a run.

  Args:
    lines: of clients.jsonl.
    saved: rounds of which a site's state was seen, by site.
  """
  counted: dict[int, set[str]] = {}
  for line in lines:
    if parse_status(line["status"]).outcome is Outcome.OK:
      counted.setdefault(line["round"], set()).add(line["client"])
  trained = {round: set(sites) for round, sites in counted.items()}
  for site, rounds in saved.items():
    for round in rounds:
      trained.setdefault(round, set()).add(site)
  return Told(trained, counted)


class SavedStates:
  """The rounds of which each site has saved a state; look more often than a site drops one.

  Args:
    folders: with a site's states, by site.
  """

  def __init__(self, folders: Mapping[str, Path]):
    self._folders = folders
    self.rounds: dict[str, set[int]] = {site: set() for site in folders}

  def look(self) -> None:
    """Adds the rounds whose states are there now."""
    for site, folder in self._folders.items():
      names = [file.stem for file in folder.glob("round_*.safetensors")]
      self.rounds[site] |= {int(name.removeprefix("round_")) for name in names}


class ToldTrainer:
  """A trainer whose clients train when they did, and whose replies count when they did.

  Args:
    trainer: trains all clients.
    told: who trained, and whose reply counted.
  """

  def __init__(self, trainer: Trainer, told: Told):
    self._trainer, self._told = trainer, told
    self.site, self.num_examples = trainer.site, trainer.num_examples

  def train_cohort(
    self, params: Params, clients: Sequence[int], round: int, *, control: Params | None = None
  ) -> dict[int, Update | Exception]:
    """Trains those of the clients that did, and fails for those whose reply did not count."""
    given = {} if control is None else {"control": control}
    there = [c for c in clients if self.site(c) in self._told.trained.get(round, ())]
    results = self._trainer.train_cohort(params, there, round, **given) if there else {}
    counted = self._told.counted.get(round, ())
    return {
      client: results[client] if self.site(client) in counted else SiteError("it did not count")
      for client in clients
    }


def replay(
  config: Experiment,
  run: Path,
  states: Mapping[str, Path],
  saved: Mapping[str, Collection[int]],
  folder: Path,
) -> list[str]:
  """Repeats a run, and says where it differs.

  Args:
    config: of the run.
    run: the server's run folder.
    states: folders with the sites' states, by site.
    saved: rounds of which a site's state was seen, by site.
    folder: new; for the replay.

  Returns:
    The differences, the first round's first; empty if every bit is equal.
  """
  lines = read_lines(run / CLIENTS)
  store = ClientStore(folder / "clients")
  setup = prepare_setup(config, find_inputs(config, SITE_SPLITS), store)
  assert setup.trainer is not None, "the data are here"
  rounds, state = _result(setup, run)
  with RunFolder.open(folder, to_dict(config)) as opened:
    checkpoints = Checkpoints(folder / "checkpoints")
    try:
      plan = plan_of(setup, opened, checkpoints)
      repeat(plan, setup.trainer, config.data.num_clients, told(lines, saved), rounds)
    finally:
      checkpoints.close()
  found = different_lines(lines, read_lines(folder / CLIENTS))
  found += different_leaves(state, _result(setup, folder)[1])
  for site, theirs in states.items():
    found += different_states(site, rounds, theirs, store.folder / site)
  return found


def repeat(plan: Plan, trainer: Trainer, num_clients: int, given: Told, rounds: int) -> Params:
  """Runs rounds in this process as they went elsewhere; returns the params.

  Args:
    plan: of the run, in a new folder.
    trainer: trains all clients.
    num_clients: their number.
    given: who trained, and whose reply counted.
    rounds: to run.
  """
  # A round has as many attempts here as it needs: one.
  plan = replace(plan, fed=replace(plan.fed, rounds=rounds, retries=0))
  with _failing_silently():
    return run_local(plan, ToldTrainer(trainer, given), num_clients)


def different_lines(lines: Sequence[RunLine], repeated: Sequence[RunLine]) -> list[str]:
  """The replies that counted in one run and not in the other, or with other numbers."""

  def counted(lines: Sequence[RunLine]) -> dict[tuple[int, str], tuple]:
    return {
      (line["round"], line["client"]): (line["num_examples"], line["loss"])
      for line in lines
      if parse_status(line["status"]).outcome is Outcome.OK
    }

  ours, theirs = counted(lines), counted(repeated)
  return [
    f"round {round}, {site}: (examples, loss) {ours.get((round, site))};"
    f" repeated {theirs.get((round, site))}"
    for round, site in sorted(ours.keys() | theirs.keys())
    if ours.get((round, site)) != theirs.get((round, site))
  ]


def different_leaves(state: Params, repeated: Params) -> list[str]:
  """The leaves of the server's last state whose bits differ."""
  ours, theirs = named_leaves(state), named_leaves(repeated)
  return [
    f"server's {name}: {_distance(ours[name], theirs[name])}"
    for name in ours
    if np.asarray(ours[name]).tobytes() != np.asarray(theirs[name]).tobytes()
  ]


def different_states(site: str, rounds: int, folder: Path, repeated: Path) -> list[str]:
  """The states of a site whose bits differ, and newest states of different rounds.

  Args:
    site: its name.
    rounds: finished; a state of a later one belongs to a round that was not.
    folder: with the site's states.
    repeated: with those of the replay.
  """

  def states(folder: Path) -> dict[str, Path]:
    files = {file.stem: file for file in sorted(folder.glob("round_*.safetensors"))}
    return {name: file for name, file in files.items() if name <= f"round_{rounds:06d}"}

  ours, theirs = states(folder), states(repeated)
  if list(ours)[-1:] != list(theirs)[-1:] or ours.keys() - theirs.keys():
    return [f"{site}: local states {list(ours)}; repeated {list(theirs)}"]
  return [
    f"{site}: local state {name} differs"
    for name in ours
    if ours[name].read_bytes() != theirs[name].read_bytes()
  ]


@contextmanager
def _failing_silently() -> Iterator[None]:
  """Without the logs of failures: those of a replay are intended."""
  logger = logging.getLogger("afspl_jax")
  level = logger.level
  logger.setLevel(logging.CRITICAL)
  try:
    yield
  finally:
    logger.setLevel(level)


def _result(setup: Setup, run: Path) -> tuple[int, Params]:
  """The last finished round of a run, and the server's state after it."""
  with RunFolder.open(run, to_dict(setup.config)) as opened:
    checkpoints = Checkpoints(run / "checkpoints", read_only=True)
    try:
      return newest_state(plan_of(setup, opened, checkpoints))
    finally:
      checkpoints.close()


def _distance(ours, theirs) -> str:
  gap = np.abs(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64))
  where = jax.tree.map(int, np.unravel_index(int(gap.argmax()), gap.shape)) if gap.size else ()
  return f"up to {gap.max(initial=0.0):.3g} apart, at {where}"
