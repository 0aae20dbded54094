"""Client-level differential privacy in the round loop, on a model small enough to work out."""

import dataclasses
import json
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from least_squares import CLIENTS, LeastSquares, assert_same_bits, init_params
from scipy import stats

from afspl_jax.checks import check
from afspl_jax.config import Data, Experiment, Fed, Privacy, Uplink
from afspl_jax.errors import UserError
from afspl_jax.federation import private, uplink
from afspl_jax.federation.client import LocalResult, SiteFault, make_client_app
from afspl_jax.federation.guard import Guard
from afspl_jax.federation.local_grid import LocalGrid
from afspl_jax.federation.private import LEDGER, WITHIN
from afspl_jax.federation.release import Release, total_of
from afspl_jax.federation.rounds import run_rounds
from afspl_jax.federation.screening import Refused
from afspl_jax.federation.selection import coins
from afspl_jax.federation.server import run_local
from afspl_jax.federation.strategies import Reply
from afspl_jax.privacy.accounting import Mechanism, epsilon
from afspl_jax.privacy.clipping import norm
from afspl_jax.privacy.ledger import Ledger

pytest.importorskip("dp_accounting")

CHANCE = 1e-7  # of a false alarm
START = init_params()


def settings_of(fed=None, **privacy):
  fed = {"rounds": 4, "clients_per_round": CLIENTS} | (fed or {})
  return Experiment(
    data=Data(num_clients=CLIENTS),
    fed=Fed(**fed),
    uplink=Uplink("dense"),
    privacy=Privacy(**{"dp": "central", "noise": 2.0, "delta": 1e-3} | privacy),
  )


@pytest.fixture
def run(plan):
  """Runs a federation under privacy; again in the same folder, what is left of it."""

  def start(config, name="run", grid=None, **kwargs):
    check(config)
    run = plan(name, **dataclasses.asdict(config.fed))
    release = Release(config, Ledger(run.folder.path / LEDGER))
    guard = Guard(config, Ledger(run.folder.path / "clients" / LEDGER))
    run = dataclasses.replace(run, private=release, **kwargs)
    try:
      params = run_local(run, LeastSquares(), CLIENTS, guard)
    finally:
      run.folder.close()
    return run.folder, params

  return start


def update_of(params):
  return jax.tree.map(lambda new, old: np.subtract(new, old, dtype=np.float64), params, START)


def replies_of(updates):
  add = lambda old, u: (old + u).astype(np.float32)  # noqa: E731
  rows = uplink.everywhere(START)
  return [
    Reply(f"site_{i}", jax.tree.map(add, START, u), rows, 1, {}) for i, u in enumerate(updates)
  ]


def total(updates, bound):
  return total_of(START, replies_of(updates), bound)


def constant(value):
  return jax.tree.map(lambda leaf: np.full(leaf.shape, value), START)


# The bound.


def pathless():
  """A ledger's file that is thrown away."""
  return Path(tempfile.mkdtemp()) / LEDGER


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=6), st.floats(0.1, 10))
def test_no_client_moves_the_mean_by_more_than_the_bound(values, bound):
  """Of the released mean, without its noise; the others' updates are the same with and without."""
  release = Release(settings_of(clip=bound), Ledger(pathless()))

  def mean(values):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr("afspl_jax.federation.release.noisy", lambda update, std: update)
      reply, _, _ = release.combine(START, total(map(constant, values), bound), {}, 1, ["a"])
    return reply[0].params

  moved = jax.tree.map(np.subtract, mean(values), mean(values[:-1]))
  assert norm(moved) <= bound / CLIENTS * (1 + 1e-3) + 1e-6  # float32's rounding


@pytest.mark.parametrize("value", [1e-4, 5.0])
def test_a_client_sends_its_update_within_the_bound_and_neither_metrics_nor_numbers(value):
  config = settings_of(clip=0.7)
  guard = Guard(config, Ledger(pathless()))
  result = LocalResult(jax.tree.map(np.add, START, constant(value)), 123, {"loss": 1.5})
  left = guard.leave("a", result, START, 0.7)
  assert (left.num_examples, left.metrics, left.masks) == (1, {}, None)
  assert norm(update_of(left.params)) == pytest.approx(min(0.7, norm(constant(value))), rel=1e-3)


def test_a_client_does_not_take_another_bound_than_was_agreed_on():
  guard = Guard(settings_of(clip=0.7), Ledger(pathless()))
  assert guard.bound(0.7) == 0.7
  for given_ in (0.8, 0.0, float("nan"), None, "0.7", True):
    with pytest.raises(ValueError, match="clip: expected"):
      guard.bound(given_)


# The noise.


def test_the_released_mean_has_the_promised_noise():
  config = settings_of(noise=3.0, clip=0.5)
  release, draws = Release(config, Ledger(pathless())), []
  for _ in range(60):
    reply, told, _ = release.combine(START, total([constant(0.0)] * 2, 0.5), {}, 1, ["a", "b"])
    draws += [leaf.ravel() for leaf in jax.tree.leaves(update_of(reply[0].params))]
  draws = np.concatenate(draws) / (3.0 * 0.5 / CLIENTS)
  spread = stats.chi2(draws.size).cdf(np.sum(draws**2))
  assert CHANCE < spread < 1 - CHANCE
  assert stats.kstest(draws, "norm").pvalue > CHANCE
  assert told["clip"] == 0.5


def test_every_client_adds_noise_of_its_own_where_nobody_is_trusted():
  config = settings_of(dp="local", noise=3.0, clip=0.5)
  guard, draws = Guard(config, Ledger(pathless())), []
  for _ in range(200):
    left = guard.leave("a", LocalResult(START, 9, {}), START, 0.5)
    draws += [leaf.ravel() for leaf in jax.tree.leaves(update_of(left.params))]
  draws = np.concatenate(draws) / (3.0 * 0.5)
  assert CHANCE < stats.chi2(draws.size).cdf(np.sum(draws**2)) < 1 - CHANCE


def test_rows_that_are_not_sent_have_no_noise():
  config = settings_of()
  config = dataclasses.replace(config, uplink=Uplink("shared", ratio=0.5))
  rows = uplink.drawn(START, config.uplink, (config.seed, 3))
  reply = Reply("a", START, rows, 1, {})
  release = Release(config, Ledger(pathless()))
  assert release.screen(reply, 3) == reply
  (mean,), _, _ = release.combine(START, total_of(START, [reply], 1.0), {}, 3, ["a"])
  moved = jax.tree.map(np.not_equal, mean.params, START)
  assert_same_bits(moved, jax.tree.map(np.broadcast_to, rows, jax.tree.map(np.shape, moved)))
  with pytest.raises(Refused, match="rows that all send"):
    release.screen(reply, 4)


# What is spent.


def test_epsilon_is_in_every_rounds_line_and_is_the_accountants(run):
  folder, _ = run(settings_of())
  train = [line for line in folder.metrics() if line["split"] == "train"]
  assert [line["epsilon"] for line in train] == [
    epsilon(Mechanism(2.0), times, 1e-3) for times in (1, 2, 3, 4)
  ]
  assert all("loss" not in line for line in train)
  assert all(line["loss"] is None and line["num_examples"] == 1 for line in folder.clients())


def test_a_budget_stops_the_run_before_it_is_exceeded(run):
  budget, said = epsilon(Mechanism(2.0), 2, 1e-3) + 1e-6, []
  folder, params = run(settings_of(epsilon=budget), say=said.append)
  train = [line for line in folder.metrics() if line["split"] == "train"]
  assert len(train) == 2 and train[-1]["epsilon"] <= budget
  assert "ending after round 2 of 4" in said[0] and f"privacy.epsilon={budget:g}" in said[0]
  again, same = run(settings_of(epsilon=budget))
  assert_same_bits(params, same)
  assert again.metrics() == folder.metrics()


def test_without_a_multiplier_the_noise_is_the_least_that_pays_for_all_rounds(run):
  folder, _ = run(settings_of(noise=0.0, epsilon=6.0))
  train = [line for line in folder.metrics() if line["split"] == "train"]
  assert len(train) == 4 and 5.9 < train[-1]["epsilon"] <= 6.0


def test_a_repeated_round_has_other_noise_and_is_paid_for_again(run):
  class Killed(BaseException):
    pass

  config = settings_of()
  seen = []

  def die_before_the_checkpoint(round, params):
    if round == 3:
      seen.append(params)
      raise Killed

  with pytest.raises(Killed):
    run(config, evaluate=die_before_the_checkpoint)
  folder, _ = run(config, evaluate=lambda round, params: seen.append(params))
  assert json.loads((folder.path / LEDGER).read_text())["releases"] == 5
  first, again = seen[0], seen[1]
  differ = jax.tree.map(np.not_equal, first, again)
  assert all(leaf.all() for leaf in jax.tree.leaves(differ))
  train = [line for line in folder.metrics() if line["split"] == "train"]
  assert [line["round"] for line in train] == [1, 2, 3, 4]
  assert train[-1]["epsilon"] == epsilon(Mechanism(2.0), 5, 1e-3)


def test_a_site_pays_out_of_its_own_budget_whatever_the_server_asks():
  budget = epsilon(Mechanism(1.5), 2, 1e-3) + 1e-6
  file = pathless()
  guard = Guard(settings_of(dp="local", noise=3.0, epsilon=budget), Ledger(file))
  result = LocalResult(START, 9, {})
  for _ in range(2):
    guard.leave("a", result, START, 1.0)
  for again in (guard, Guard(settings_of(dp="local", noise=3.0, epsilon=budget), Ledger(file))):
    with pytest.raises(SiteFault, match="is spent"):
      again.leave("a", result, START, 1.0)
  guard.leave("b", result, START, 1.0)


def test_a_ledger_that_is_none_is_refused_by_name(tmp_path):
  for text in ("", "[]", '{"releases": -1, "took_part": {}}', '{"releases": 1, "took_part": [2]}'):
    (tmp_path / LEDGER).write_text(text)
    with pytest.raises(UserError, match=rf"{LEDGER}: expected the count of releases"):
      Ledger(tmp_path / LEDGER)


# Who takes part.


def test_coins_are_fair_and_independent():
  sites = [f"site_{i}" for i in range(50)]
  drawn = [coins(sites, 0.2, key, 1) for key in range(400)]
  sizes = np.array([len(names) for names in drawn])
  assert CHANCE < stats.binom(50 * 400, 0.2).cdf(sizes.sum()) < 1 - CHANCE
  assert sizes.var() == pytest.approx(50 * 0.2 * 0.8, rel=0.3)  # of independent ones
  assert coins(sites, 1.0, 7, 1) == sorted(sites) and coins(sites, 0.0, 7, 1) == []


def test_a_round_of_which_nobody_is_part_releases_noise(run):
  config = settings_of(fed={"selection": "poisson", "clients_per_round": 1, "rounds": 12})
  folder, _ = run(config)
  train = [line for line in folder.metrics() if line["split"] == "train"]
  assert len(train) == 12  # and at a quarter each, one in three rounds is of nobody
  mechanism = Mechanism(2.0, 1 / CLIENTS)
  assert train[-1]["epsilon"] == epsilon(mechanism, 12, 1e-3)
  assert json.loads((folder.path / LEDGER).read_text())["took_part"] == {}


def test_the_bound_follows_the_norms(run):
  folder, _ = run(settings_of(clipping="adaptive", clip=1e-3, noise=0.05, fed={"rounds": 6}))
  train = [line for line in folder.metrics() if line["split"] == "train"]
  clips = [line["clip"] for line in train]
  assert clips[0] == 1e-3 and clips == sorted(clips)  # all updates are larger
  assert abs(train[0][WITHIN]) < 0.5
  again, _ = run(settings_of(clipping="adaptive", clip=1e-3, noise=0.05, fed={"rounds": 6}))
  assert again.metrics() == folder.metrics()


@pytest.mark.parametrize(
  ("given_", "metrics", "examples"),
  [
    ("fixed", {"loss": 1.0}, 1),
    ("fixed", {}, 2),
    ("adaptive", {}, 1),
    ("adaptive", {WITHIN: 5.0}, 1),
  ],
)
def test_replies_that_say_more_or_weigh_more_are_refused(given_, metrics, examples):
  release = Release(settings_of(clipping=given_), Ledger(pathless()))
  with pytest.raises(Refused):
    release.screen(Reply("a", START, uplink.everywhere(START), examples, metrics), 1)


def test_a_site_says_nothing_of_its_size():
  config, replies = settings_of(), []

  class Listening(LocalGrid):
    def pull_messages(self, ids):
      pulled = super().pull_messages(ids)
      replies.extend(pulled)
      return pulled

  app = make_client_app(LeastSquares(), START, None, Guard(config, Ledger(pathless())))
  grid = Listening(app, CLIENTS)
  from afspl_jax.federation import wire
  from afspl_jax.federation.sites import Sites

  assert {s.num_examples for s in Sites(grid, wire.terms(START, {}), 99).look().values()} == {1}
  assert len(replies) == CLIENTS
  assert run_rounds  # the loop that asks so


# What is refused before anything runs.


@pytest.mark.parametrize(
  ("field", "change"),
  [
    ("privacy.noise", {"privacy": {"noise": 0.0}}),
    ("privacy.dp", {"privacy": {"dp": "some"}}),
    ("privacy.delta", {"privacy": {"delta": 0.2}}),
    ("privacy.clip", {"privacy": {"clip": 0.0}}),
    ("privacy.clipping", {"privacy": {"dp": "local", "clipping": "adaptive"}}),
    ("uplink.select", {"uplink": {"select": "energy"}}),
    ("fed.strategy", {"fed": {"strategy": "median"}}),
    ("fed.strategy", {"fed": {"strategy": "qfedavg"}}),
    ("fed.selection", {"fed": {"selection": "power_of_choice"}}),
    ("fed.selection", {"fed": {"clients_per_round": 2}}),
    ("fed.selection", {"fed": {"selection": "poisson"}, "privacy": {"dp": "local"}}),
    ("fed.selection", {"fed": {"selection": "poisson"}, "privacy": {"dp": "none"}}),
  ],
)
def test_settings_that_promise_nothing_are_refused_by_field(field, change):
  config = settings_of()
  for group, values in change.items():
    part = dataclasses.replace(getattr(config, group), **values)
    config = dataclasses.replace(config, **{group: part})
  with pytest.raises(UserError, match=rf"^{field}: expected"):
    check(config)


def test_round_robin_is_paid_by_the_site_whose_turn_comes_most_often():
  fed = {"selection": "round_robin", "clients_per_round": 3, "rounds": 5}
  assert private.planned(settings_of(fed=fed)) == (1.0, 4)  # 15 turns over 4 sites
