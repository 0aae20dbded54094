"""Clients of one process: trained together, and each as if it were alone."""

import shutil

import jax
import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from afspl_jax.config.experiment import Experiment
from afspl_jax.config.fields import changed
from afspl_jax.errors import UserError
from afspl_jax.federation.client.client_app import SiteApp
from afspl_jax.federation.client.client_store import ClientStore
from afspl_jax.federation.contracts import CohortApp
from afspl_jax.federation.protocol import wire
from afspl_jax.federation.transport.local_grid import LocalGrid
from afspl_jax.runs.prepare import find_inputs, prepare_setup
from tests.recorded_run import FIELDS

OF_TEST = {
  "fed.cohort": 2,
  "data.num_clients": 4,
  "data.partition": "iid",
  "uplink.select": "energy",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_checkpoints, shapes_dir):
  folder = tmp_path_factory.mktemp("training")
  fields = {"backbone.clip": str(tiny_checkpoints.clip), "backbone.t5": str(tiny_checkpoints.t5)}
  fields |= FIELDS | OF_TEST | {"data.dir": str(shapes_dir)}
  config = changed(Experiment(), fields)
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    return prepare_setup(
      config, find_inputs(config), ClientStore(folder / "clients")
    ), folder / "clients"


@pytest.fixture
def setup(made):
  """With clients that know nothing yet."""
  setup, states = made
  shutil.rmtree(states, ignore_errors=True)
  return setup


@pytest.fixture
def states(made):
  return made[1]


@pytest.fixture
def runs(setup, monkeypatch):
  """Numbers of clients, copies included, of each run of the compiled program."""
  program, counted = setup.trainer.program, []

  def counting(params, *args):
    counted.append(len(params["visual_prompt"]))
    return program(params, *args)

  monkeypatch.setattr(setup.trainer, "program", counting)
  return counted


def assert_close(one, other):
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    error = np.linalg.norm(np.asarray(a) - np.asarray(b))
    assert error <= 1e-5 * max(1.0, float(np.linalg.norm(b)))


def files(states):
  return sorted(path.parent.name for path in states.glob("*/*.safetensors"))


def train_alone(setup, client, round=1):
  return setup.trainer.train_cohort(setup.shared, [client], round)[client]


def test_clients_of_a_cohort_get_what_they_would_get_alone(setup, runs):
  trainer, clients = setup.trainer, [2, 0, 3]
  alone = {client: train_alone(setup, client) for client in clients}
  own = {client: trainer.personal(setup.shared, client, 1) for client in clients}
  results = trainer.train_cohort(setup.shared, clients, 1)
  assert sorted(results) == sorted(clients)
  for client, result in results.items():
    assert_close(result.params, alone[client].params)
    assert result.num_examples == alone[client].num_examples
    assert result.metrics == pytest.approx(alone[client].metrics, rel=1e-4)
    assert_close(trainer.personal(setup.shared, client, 1), own[client])
  assert not np.allclose(own[0]["local"]["prompt"], own[2]["local"]["prompt"], atol=1e-2)
  # Alone, alone, alone; then two together and the third with a copy of itself: not a new shape.
  assert runs == [1, 1, 1, 2, 2]


def test_cohorts_are_as_even_as_can_be(setup, runs, monkeypatch):
  monkeypatch.setattr(setup.config.fed, "cohort", 3)
  setup.trainer.train_cohort(setup.shared, range(4), 1)
  assert runs == [2, 2]  # and not 3 and 3, two of them copies


def test_any_number_of_clients_that_poisson_sampling_picks_is_trained_by_one_program(
  setup, runs, monkeypatch
):
  monkeypatch.setattr(setup.config.fed, "selection", "poisson")
  for picked in ([1], [0, 2, 3], []):
    assert set(setup.trainer.train_cohort(setup.shared, picked, 1)) == set(picked)
  assert runs == [2, 2, 2]


def test_a_client_on_a_host_of_its_own_is_never_filled_up_with_copies(setup, runs, monkeypatch):
  monkeypatch.setattr(setup.config.fed, "selection", "poisson")
  monkeypatch.setattr(setup.trainer, "_in_process", False)
  train_alone(setup, 1)
  assert runs == [1]


def test_the_state_of_every_client_is_on_disk_when_its_result_is_there(setup, states):
  setup.trainer.train_cohort(setup.shared, [1, 0], 1)
  assert files(states) == [setup.trainer.site(0), setup.trainer.site(1)]


def test_who_trains_twice_in_a_round_gets_the_same(setup, runs):
  first = train_alone(setup, 0)
  assert_close(train_alone(setup, 0).params, first.params)
  assert runs == [1, 1]


@pytest.mark.parametrize("other", ["round", "params", "first_step"])
def test_a_result_depends_on_nothing_that_was_trained_before(setup, other):
  moved = jax.tree.map(lambda leaf: leaf + np.float32(0.1), setup.shared)
  asked = {
    "round": (setup.shared, [3], 2, 0),
    "params": (moved, [3], 1, 0),
    "first_step": (setup.shared, [3], 1, 4),
  }[other]
  alone = setup.trainer.train_cohort(*asked)[3]
  setup.trainer.train_cohort(setup.shared, [2, 3], 3, 0)
  assert_close(setup.trainer.train_cohort(*asked)[3].params, alone.params)


def spoil(setup, states, client):
  """Puts NaN into what a client knows of itself."""
  trainer = setup.trainer
  own = {"local": trainer.personal(setup.shared, client, 0)["local"]}
  residual = jax.tree.map(np.zeros_like, setup.shared)
  own = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), own)
  ClientStore(states).save(trainer.site(client), 0, {"own": own, "residual": residual})


def damage(setup, states, client):
  spoil(setup, states, client)
  next((states / setup.trainer.site(client)).iterdir()).write_bytes(b"not this")


@pytest.mark.parametrize(
  "harm, error, says",
  [
    (spoil, FloatingPointError, "none of 2 local steps had a finite loss"),
    (damage, UserError, "expected the state of"),
  ],
)
@pytest.mark.parametrize("bad", [0, 1])
def test_a_client_that_fails_fails_alone(setup, states, harm, error, says, bad):
  good = 1 - bad
  alone = train_alone(setup, good)
  harm(setup, states, bad)
  before = sorted(states.rglob("*"))
  results = setup.trainer.train_cohort(setup.shared, [0, 1], 1)
  assert isinstance(results[bad], error) and says in str(results[bad])
  assert_close(results[good].params, alone.params)
  assert sorted(states.rglob("*")) == before  # nothing was kept of the failure


def test_a_program_that_fails_is_the_error_of_all_in_its_cohort_and_of_no_other(
  setup, states, monkeypatch
):
  program = setup.trainer.program
  programs = iter([program, lambda *args: 1 / 0])
  monkeypatch.setattr(setup.trainer, "program", lambda *args: next(programs)(*args))
  results = setup.trainer.train_cohort(setup.shared, range(4), 1)
  kinds = [isinstance(results[client], ZeroDivisionError) for client in range(4)]
  assert kinds == [False, False, True, True]
  assert files(states) == [setup.trainer.site(0), setup.trainer.site(1)]


def ask(grid, setup, clients, round=1):
  config = ConfigRecord({wire.STRUCTURE: wire.structure_digest(setup.shared), wire.ROUND: round})
  content = RecordDict({wire.ARRAYS: wire.pack(setup.shared), wire.CONFIG: config})
  nodes = grid.get_node_ids()
  messages = [Message(content, nodes[k], wire.TRAIN, group_id="1") for k in clients]
  return grid.send_and_receive(messages)


def test_a_push_trains_its_clients_together_and_each_answers_for_itself(setup, states, runs):
  app = SiteApp(setup.trainer, setup.shared)
  assert isinstance(app, CohortApp)
  apart = [ask(LocalGrid(app, 4), setup, [client])[0] for client in (0, 1, 3)]
  spoil(setup, states, 1)
  together = ask(LocalGrid(app, 4), setup, [0, 1, 3])
  assert runs == [1, 1, 1, 2, 2]
  assert [reply.has_error() for reply in together] == [False, True, False]
  assert "FloatingPointError: none of 2 local steps" in together[1].error.reason
  for one, other in ((apart[0], together[0]), (apart[2], together[2])):
    flat = [reply.content["arrays"]["flat"].numpy() for reply in (one, other)]
    np.testing.assert_allclose(*flat, atol=1e-4)
