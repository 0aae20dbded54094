"""The replay of a soak: it needs to know which replies counted, and who trained all the same."""

import jax
import numpy as np
import pytest

from afspl_jax.config.experiment import Fed
from afspl_jax.federation import strategies
from afspl_jax.federation.client.client_store import ClientStore
from afspl_jax.federation.contracts import SiteError
from afspl_jax.federation.server.rounds import Plan
from afspl_jax.federation.server.server_app import run_local
from afspl_jax.storage.checkpoints import Checkpoints
from afspl_jax.storage.run_folder import RunFolder
from afspl_jax.storage.run_lines import CLIENTS, read_lines
from benchmarks.soak import replay
from tests.federation.least_squares import LeastSquares, init_params
from tests.federation.watching import Watching

ROUNDS, CLIENTS_HERE = 6, 3
# (round, client): before the state is saved, or after it.
LOST = {(2, 1): "before", (3, 0): "after", (3, 2): "before", (4, 1): "after"}


class Remembering(LeastSquares):
  """Adds to each update what the client's state has counted; it can fail before or after."""

  def __init__(self, folder, lost=()):
    super().__init__()
    self.store, self.lost = ClientStore(folder), dict(lost)

  def train(self, params, client, round):
    when = self.lost.get((round, client))
    if when == "before":
      raise SiteError("lost")
    state = self.store.load(self.site(client), round, {"rounds": np.zeros(1, np.float32)})
    rounds = state["rounds"] if state else np.zeros(1, np.float32)
    update = super().train(params, client, round)
    self.store.save(self.site(client), round, {"rounds": rounds + 1})
    if when == "after":
      raise SiteError("lost")
    moved = jax.tree.map(lambda leaf: np.asarray(leaf + 0.01 * rounds[0]), update.params)
    return update._replace(params=moved)


def plan_in(folder, opened):
  return Plan(
    params=init_params(),
    strategy=strategies.get_strategy("fedavgm"),
    fed=Fed(rounds=ROUNDS, clients_per_round=CLIENTS_HERE),
    seed=0,
    folder=opened,
    checkpoints=Checkpoints(folder / "checkpoints"),
    evaluate=lambda round, params: None,
  )


@pytest.fixture
def recorded(tmp_path):
  """A run in which replies were lost: its folder, its params, and the states that were seen."""
  folder = tmp_path / "run"
  trainer = Remembering(tmp_path / "states", LOST)
  sites = [trainer.site(client) for client in range(CLIENTS_HERE)]
  states = replay.SavedStates({site: trainer.store.folder / site for site in sites})
  with RunFolder.open(folder, {}) as opened:
    watching = Watching(lambda report: states.look())
    params = run_local(plan_in(folder, opened), trainer, CLIENTS_HERE, progress=watching)
  return folder, params, states


def repeated(tmp_path, told):
  """Params and lines of a replay."""
  folder = tmp_path / "replay"
  trainer = Remembering(tmp_path / "replayed states")
  with RunFolder.open(folder, {}) as opened:
    params = replay.repeat(plan_in(folder, opened), trainer, CLIENTS_HERE, told, ROUNDS)
  return params, read_lines(folder / CLIENTS)


def test_a_replay_that_is_told_who_trained_and_who_counted_ends_with_the_same_bits(
  tmp_path, recorded
):
  folder, params, states = recorded
  lines = read_lines(folder / CLIENTS)
  told = replay.told(lines, states.rounds)
  assert told.counted[3] == {"site_01"} and told.trained[3] == {"site_00", "site_01"}
  again, lines_again = repeated(tmp_path, told)
  assert replay.different_leaves(params, again) == []
  assert replay.different_lines(lines, lines_again) == []
  for site in states.rounds:
    here, there = tmp_path / "states" / site, tmp_path / "replayed states" / site
    assert replay.different_states(site, ROUNDS, here, there) == []


def test_a_replay_that_knows_only_the_replies_that_counted_differs(tmp_path, recorded):
  folder, params, _ = recorded
  lines = read_lines(folder / CLIENTS)
  again, lines_again = repeated(tmp_path, replay.told(lines, {}))
  found = replay.different_leaves(params, again)
  assert len(found) == len(jax.tree.leaves(params)) and "server's mapper/bias: up to" in found[0]
  # In round 4 client 0 has counted a round less; the loss before that is the same.
  assert replay.different_lines(lines, lines_again)[0].startswith("round 5, site_00:")
  site = "site_00"
  here, there = tmp_path / "states" / site, tmp_path / "replayed states" / site
  assert replay.different_states(site, ROUNDS, here, there) == [
    f"{site}: local state round_00000{round} differs" for round in (4, 5, 6)
  ]


def test_a_reply_that_counted_in_one_run_only_is_a_difference(recorded):
  lines = read_lines(recorded[0] / CLIENTS)
  (found,) = replay.different_lines(lines, lines[1:])
  assert found.startswith("round 1, site_00: (examples, loss) (10, ")
  assert found.endswith("; repeated None")


def test_states_of_an_unfinished_round_do_not_count(tmp_path, recorded):
  store, site = ClientStore(tmp_path / "states"), "site_02"
  store.save(site, ROUNDS + 1, {"rounds": np.zeros(1, np.float32)})
  here = tmp_path / "states" / site
  assert replay.different_states(site, ROUNDS, here, here) == []
  (found,) = replay.different_states(site, ROUNDS, here, tmp_path / "no states")
  assert found.startswith(f"{site}: local states ['round_000005'")


def test_a_bit_that_differs_is_found_in_every_type(recorded):
  params = recorded[1]
  flipped = jax.tree.map(np.copy, params)
  flipped["mapper"]["bias"][1] = np.nextafter(flipped["mapper"]["bias"][1], np.float32(9))
  (found,) = replay.different_leaves(params, flipped)
  assert found.startswith("server's mapper/bias: up to ") and found.endswith("at (1,)")
  zero = {"a": np.zeros(1, np.float32)}
  assert replay.different_leaves(zero, {"a": -zero["a"]}) == ["server's a: up to 0 apart, at (0,)"]
