"""Clients of one process: trained together, and each as if it were alone."""

import shutil

import jax
import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from afspl_jax.config.experiment import Experiment
from afspl_jax.config.fields import changed
from afspl_jax.errors import UserError
from afspl_jax.federation.client.client_app import make_client_app
from afspl_jax.federation.client.client_store import ClientStore
from afspl_jax.federation.contracts import CohortTrainer
from afspl_jax.federation.protocol import wire
from afspl_jax.federation.transport.local_grid import LocalGrid
from afspl_jax.runs.prepare import find, prepare
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
    return prepare(config, find(config), ClientStore(folder / "clients")), folder / "clients"


@pytest.fixture
def setup(made):
  """With clients that know nothing yet."""
  setup, states = made
  shutil.rmtree(states, ignore_errors=True)
  setup.trainer.expect([])
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


def test_announced_clients_get_what_they_would_get_alone(setup, runs):
  trainer, clients = setup.trainer, [2, 0, 3]
  alone = {client: trainer.train(setup.shared, client, 1) for client in clients}
  own = {client: trainer.personal(setup.shared, client, 1) for client in clients}
  trainer.expect(clients)
  for client in clients:
    result = trainer.train(setup.shared, client, 1)
    assert_close(result.params, alone[client].params)
    assert result.num_examples == alone[client].num_examples
    assert result.metrics == pytest.approx(alone[client].metrics, rel=1e-4)
    assert_close(trainer.personal(setup.shared, client, 1), own[client])
  assert not np.allclose(own[0]["local"]["prompt"], own[2]["local"]["prompt"], atol=1e-2)
  # Alone, alone, alone; then two together and the third with a copy of itself: not a new shape.
  assert runs == [1, 1, 1, 2, 2]


def test_cohorts_are_as_even_as_can_be(setup, runs, monkeypatch):
  monkeypatch.setattr(setup.config.fed, "cohort", 3)
  setup.trainer.expect([0, 1, 2, 3])
  for client in range(4):
    setup.trainer.train(setup.shared, client, 1)
  assert runs == [2, 2]  # and not 3 and 3, two of them copies


def test_however_many_coins_draw_is_trained_by_one_program(setup, runs, monkeypatch):
  monkeypatch.setattr(setup.config.fed, "selection", "poisson")
  for drawn in ([1], [0, 2, 3], []):
    setup.trainer.expect(drawn)
    for client in drawn:
      setup.trainer.train(setup.shared, client, 1)
  assert runs == [2, 2, 2]


def test_clients_may_ask_in_another_order_than_announced(setup, runs):
  setup.trainer.expect([0, 1, 2, 3])
  for client in (3, 0, 2, 1):
    setup.trainer.train(setup.shared, client, 1)
  assert runs == [2, 2]


def test_a_clients_state_is_written_when_it_asks_and_not_before(setup, states):
  setup.trainer.expect([0, 1])
  setup.trainer.train(setup.shared, 1, 1)
  assert files(states) == [setup.trainer.site(1)]
  setup.trainer.train(setup.shared, 0, 1)
  assert files(states) == [setup.trainer.site(0), setup.trainer.site(1)]


def test_who_asks_twice_trains_again(setup, runs):
  setup.trainer.expect([0, 1])
  first = setup.trainer.train(setup.shared, 0, 1)
  assert_close(setup.trainer.train(setup.shared, 0, 1).params, first.params)
  setup.trainer.train(setup.shared, 1, 1)
  assert runs == [2, 1]


@pytest.mark.parametrize("other", ["round", "params", "first_step"])
def test_what_was_trained_from_something_else_is_thrown_away(setup, runs, other):
  moved = jax.tree.map(lambda leaf: leaf + np.float32(0.1), setup.shared)
  asked = {
    "round": (setup.shared, 3, 2, 0),
    "params": (moved, 3, 1, 0),
    "first_step": (setup.shared, 3, 1, 4),
  }[other]
  alone = setup.trainer.train(*asked)
  setup.trainer.expect([2, 3])
  setup.trainer.train(setup.shared, 2, 1, 0)
  assert_close(setup.trainer.train(*asked).params, alone.params)
  assert runs == [1, 2, 1]


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
  trainer, good = setup.trainer, 1 - bad
  alone = trainer.train(setup.shared, good, 1)
  harm(setup, states, bad)
  before = sorted(states.rglob("*"))
  trainer.expect([0, 1])
  for client in (0, 1):
    if client == bad:
      with pytest.raises(error, match=says):
        trainer.train(setup.shared, client, 1)
    else:
      assert_close(trainer.train(setup.shared, client, 1).params, alone.params)
  assert sorted(states.rglob("*")) == before  # nothing was kept of the failure


def ask(grid, setup, clients, round=1):
  config = ConfigRecord({wire.STRUCTURE: wire.structure_digest(setup.shared), wire.ROUND: round})
  content = RecordDict({wire.ARRAYS: wire.pack(setup.shared), wire.CONFIG: config})
  nodes = grid.get_node_ids()
  messages = [Message(content, nodes[k], wire.TRAIN, group_id="1") for k in clients]
  return grid.send_and_receive(messages)


def test_a_push_trains_its_clients_together_and_each_answers_for_itself(setup, states, runs):
  assert isinstance(setup.trainer, CohortTrainer)
  app = make_client_app(setup.trainer, setup.shared)
  apart = ask(LocalGrid(app, 4), setup, [0, 1, 3])
  spoil(setup, states, 1)
  together = ask(LocalGrid(app, 4, setup.trainer.expect), setup, [0, 1, 3])
  assert runs == [1, 1, 1, 2, 2]
  assert [reply.has_error() for reply in together] == [False, True, False]
  assert "FloatingPointError: none of 2 local steps" in together[1].error.reason
  for one, other in ((apart[0], together[0]), (apart[2], together[2])):
    flat = [reply.content["arrays"]["flat"].numpy() for reply in (one, other)]
    np.testing.assert_allclose(*flat, atol=1e-4)
