"""Client-level differential privacy in the round loop, on a model small enough to work out."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from afspl_jax.errors import UserError
from afspl_jax.federation.client.client_app import SiteApp
from afspl_jax.federation.contracts import WITHIN, SiteSpent
from afspl_jax.federation.privacy import budget
from afspl_jax.federation.privacy.accounting import Mechanism, epsilon
from afspl_jax.federation.privacy.budget import LEDGER
from afspl_jax.federation.privacy.ledger import Ledger
from afspl_jax.federation.privacy.server_release import Release
from afspl_jax.federation.privacy.update_clipping import UpdateClipping
from afspl_jax.federation.server.aggregation import PrivateAggregation
from afspl_jax.federation.server.progress import SILENT
from afspl_jax.federation.server.rounds import run_rounds
from afspl_jax.federation.server.server_app import run_local
from afspl_jax.federation.transport.local_grid import LocalGrid
from afspl_jax.runs.validate import validate
from tests.federation.least_squares import CLIENTS, LeastSquares, assert_same_bits
from tests.federation.privacy.private_settings import settings_of
from tests.federation.watching import Watching


@pytest.fixture
def run(plan):
  """Runs a federation under privacy; again in the same folder, what is left of it."""

  def start(config, name="run", progress=SILENT, **kwargs):
    validate(config)
    run = plan(name, **dataclasses.asdict(config.fed))
    release = Release(config, Ledger(run.folder.path / LEDGER))
    clipping = UpdateClipping(config, Ledger(run.folder.path / "clients" / LEDGER))
    run = dataclasses.replace(run, aggregation=PrivateAggregation(release), **kwargs)
    try:
      params = run_local(run, LeastSquares(), CLIENTS, clipping, progress=progress)
    finally:
      run.folder.close()
    return run.folder, params

  return start


def test_epsilon_is_in_every_rounds_line_and_is_the_accountants(run):
  folder, _ = run(settings_of())
  train = [line for line in folder.metrics() if line["split"] == "train"]
  assert [line["epsilon"] for line in train] == [
    epsilon(Mechanism(2.0), times, 1e-3) for times in (1, 2, 3, 4)
  ]
  assert all("loss" not in line for line in train)
  assert all(line["loss"] is None and line["num_examples"] == 1 for line in folder.clients())


def test_a_budget_stops_the_run_before_it_is_exceeded(run):
  budget, watching = epsilon(Mechanism(2.0), 2, 1e-3) + 1e-6, Watching()
  folder, params = run(settings_of(epsilon=budget), progress=watching)
  train = [line for line in folder.metrics() if line["split"] == "train"]
  assert len(train) == 2 and train[-1]["epsilon"] <= budget
  assert (
    "ending after round 2 of 4" in watching.said[0]
    and f"privacy.epsilon={budget:g}" in watching.said[0]
  )
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
  differ = [np.ravel(a != b) for a, b in zip(*map(jax.tree.leaves, seen[:2]), strict=True)]
  same = sum(np.sum(~leaf) for leaf in differ)
  assert same <= 3  # float32 may round two to the same
  train = [line for line in folder.metrics() if line["split"] == "train"]
  assert [line["round"] for line in train] == [1, 2, 3, 4]
  assert train[-1]["epsilon"] == epsilon(Mechanism(2.0), 5, 1e-3)


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
    ("fed.min_replies", {"fed": {"selection": "poisson", "min_replies": 2}}),
    ("fed.selection", {"fed": {"selection": "poisson"}, "privacy": {"dp": "local"}}),
    ("fed.selection", {"fed": {"selection": "poisson"}, "privacy": {"dp": "none"}}),
  ],
)
def test_settings_that_promise_nothing_are_rejected_by_field(field, change):
  config = settings_of()
  for group, values in change.items():
    part = dataclasses.replace(getattr(config, group), **values)
    config = dataclasses.replace(config, **{group: part})
  with pytest.raises(UserError, match=rf"^{field}: expected"):
    validate(config)


def test_round_robin_is_paid_by_the_site_whose_turn_comes_most_often():
  fed = {"selection": "round_robin", "clients_per_round": 3, "rounds": 5}
  assert budget.planned(settings_of(fed=fed)) == (1.0, 4)  # 15 turns over 4 sites


def test_what_was_spent_stays_spent_when_a_damaged_checkpoint_costs_a_round(run):
  folder, _ = run(settings_of(fed={"rounds": 3}))
  newest = folder.path / "checkpoints" / "3"
  shutil.rmtree(newest / "state")
  watching = Watching()
  again, _ = run(settings_of(fed={"rounds": 3}), progress=watching)
  assert watching.said[0].startswith(f"{newest}: damaged (")
  assert json.loads((again.path / LEDGER).read_text())["releases"] == 4
  train = [line for line in again.metrics() if line["split"] == "train"]
  assert [line["round"] for line in train] == [1, 2, 3]
  assert train[-1]["epsilon"] == epsilon(Mechanism(2.0), 4, 1e-3)


class Budgeted(LeastSquares):
  """Client k may train `rounds[k]` rounds."""

  def __init__(self, *rounds):
    super().__init__()
    self.left = dict(enumerate(rounds))

  def train(self, params, client, round):
    if not self.left[client]:
      raise SiteSpent("privacy.example_epsilon=1 of this site is spent")
    self.left[client] -= 1
    return super().train(params, client, round)


def test_clients_with_spent_budgets_leave_and_the_run_ends_when_too_few_are_left(plan):
  run, watching = plan(rounds=9, min_replies=2), Watching()
  run_local(run, Budgeted(9, 4, 2, 1), CLIENTS, progress=watching)
  run.folder.close()
  train = [line for line in run.folder.metrics() if line["split"] == "train"]
  assert [line["clients"] for line in train] == [4, 3, 2, 2]
  spent = [line for line in run.folder.clients() if line["status"].startswith("spent: ")]
  assert [(line["round"], line["client"]) for line in spent] == [(2, "site_03"), (3, "site_02")]
  assert "SiteSpent: privacy.example_epsilon=1 of this site is spent" in spent[0]["status"]
  first, last = watching.said
  assert first.startswith(
    "round 5: expected at least 2 valid replies; got 1 of 2. site_01: spent: "
  )
  assert last == (
    "ending after round 4 of 9: sites with a spent privacy budget: 3; sites that are left: 1, fewer"
    " than fed.min_replies=2"
  )


def test_a_cohort_that_is_spent_is_replaced_by_clients_that_are_not(plan):
  run, watching = plan(rounds=6, clients_per_round=1, retries=0), Watching()
  run_local(run, Budgeted(9, 1, 1, 0), CLIENTS, progress=watching)
  run.folder.close()
  train = [line for line in run.folder.metrics() if line["split"] == "train"]
  assert [line["clients"] for line in train] == [1] * 6
  assert all("Trying round" in text for text in watching.said)


def test_a_run_goes_on_after_a_start_with_the_clients_that_have_a_budget(plan):
  rounds = {"min_replies": 2, "clients_per_round": 4}
  run = plan(rounds=2, **rounds)
  run_local(run, Budgeted(9, 9, 9, 1), CLIENTS)
  run.folder.close()
  again, watching = plan(rounds=4, **rounds), Watching()
  trainer = Budgeted(9, 9, 9, 0)
  run_local(again, trainer, CLIENTS, progress=watching)
  again.folder.close()
  train = [line for line in again.folder.metrics() if line["split"] == "train"]
  assert [(line["round"], line["clients"]) for line in train] == [(1, 4), (2, 3), (3, 3), (4, 3)]
  assert watching.said == []
  asked = [line["client"] for line in again.folder.clients() if line["round"] > 2]
  assert asked == ["site_00", "site_01", "site_02"] * 2  # not the one that is spent


def test_a_start_does_not_wait_for_clients_that_are_spent(plan):
  run = plan(rounds=2)
  run_local(run, Budgeted(9, 9, 9, 1), CLIENTS)
  run.folder.close()
  again, watching = plan(rounds=3, wait=0.2), Watching()
  grid = LocalGrid(SiteApp(Budgeted(9, 9, 9), again.params), CLIENTS - 1)
  run_rounds(grid, again, CLIENTS, watching)
  again.folder.close()
  assert watching.said == []
  assert again.folder.metrics()[-1]["round"] == 3
