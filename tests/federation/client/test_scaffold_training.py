"""Controls of real clients: what they keep, what they send, and what the server makes of it."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from afspl_jax.federation.client.client_store import ClientStore
from afspl_jax.federation.protocol import wire
from tests.federation.least_squares import assert_same_bits
from tests.recorded_run import scaffold_run

NEWCOMERS = 2  # of ten sites


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_checkpoints, shapes_dir):
  return scaffold_run(tmp_path_factory.getbasetemp(), tiny_checkpoints, shapes_dir)


@pytest.fixture
def trainer(run, tmp_path, monkeypatch):
  """The run's, whose clients know nothing yet."""
  trainer = run.setup.trainer
  monkeypatch.setattr(trainer, "_store", ClientStore(tmp_path))
  return trainer


@pytest.fixture
def corrections(trainer, monkeypatch):
  """What each run of the compiled program was given, a leading axis of clients in every leaf."""
  program, given = trainer.program, []

  def recording(*args):
    given.append(args[-1])
    return program(*args)

  monkeypatch.setattr(trainer, "program", recording)
  return given


def controls_of(run, site, last):
  """What a site kept after each round that it took part in, up to the last one."""
  files = sorted((run.path / "clients" / site).glob("round_*.safetensors"))
  rounds = {int(file.stem.split("_")[1]): load_file(file) for file in files}
  return {
    round: {name: leaf for name, leaf in leaves.items() if name.startswith("control/")}
    for round, leaves in rounds.items()
    if round <= last
  }


def named(tree):
  return {
    f"control/{jax.tree_util.keystr(path, simple=True, separator='/')}": np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def train(trainer, shared, client, round, control=None):
  return trainer.train_cohort(shared, [client], round, control=control)[client]


def draw(shared, seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: np.asarray(0.05 * rng.normal(size=x.shape), x.dtype), shared)


def test_the_servers_control_is_the_mean_of_all_its_sites(run):
  sites = sorted(run.setup.clients["train"])[:-NEWCOMERS]
  zeros = named(jax.tree.map(np.zeros_like, run.setup.shared))
  for round in (2, 3):  # whose checkpoints are kept
    kept = [([zeros, *controls_of(run, site, round).values()])[-1] for site in sites]
    found = named(run.checkpoint(round)["strategy_state"]["control"])
    assert set(found) == set(zeros) and not any("local" in name for name in found)
    for name, leaf in found.items():
      expected = np.mean([control[name] for control in kept], axis=0, dtype=np.float64)
      np.testing.assert_allclose(leaf, expected, atol=1e-7)
    assert max(np.abs(leaf).max() for leaf in found.values()) > 1e-3


def test_a_site_sends_what_it_added_to_its_control(run):
  twice = 0
  for reply in run.replies:
    if reply.metadata.message_type != "train":
      continue
    site = run.setup.trainer.site(reply.metadata.src_node_id - 2)
    *earlier, new = controls_of(run, site, int(reply.metadata.group_id)).values()
    sent = named(wire.unpack(reply.content["control"], run.setup.shared))
    old = earlier[-1] if earlier else {name: np.zeros_like(leaf) for name, leaf in new.items()}
    assert_same_bits(sent, {name: new[name] - old[name] for name in sent})
    twice += bool(earlier)
  assert twice > 0


def test_gradients_are_corrected_by_the_servers_control_minus_the_clients_own(
  run, trainer, corrections
):
  shared, c = run.setup.shared, [draw(run.setup.shared, seed) for seed in range(2)]
  own = train(trainer, shared, 0, 1, control=c[0]).control
  train(trainer, shared, 0, 2, control=c[1])
  first, second = (jax.tree.map(lambda x: x[0], given) for given in corrections)
  assert_same_bits(first, c[0])  # its own was zeros
  assert_same_bits(second, jax.tree.map(np.subtract, c[1], own))


def test_a_repeated_round_starts_from_the_control_before_it(run, trainer, tmp_path):
  shared, c = run.setup.shared, draw(run.setup.shared, 0)
  train(trainer, shared, 0, 1, control=c)
  results, files = [], []
  for round in (2, 3, 2):  # the second and third are after a crash of the server in round 3
    results.append(train(trainer, shared, 0, round, control=c))
    file = tmp_path / trainer.site(0) / f"round_{round:06d}.safetensors"
    files.append(file.read_bytes())
  assert_same_bits(*((r.params, r.control) for r in (results[0], results[2])))
  assert files[0] == files[2] != files[1]
  assert not np.array_equal(*(r.control["pool"]["prompts"] for r in results[:2]))


def test_clients_of_a_cohort_get_the_controls_they_would_get_alone(run, trainer):
  shared, clients = run.setup.shared, [3, 0, 2, 1]
  for round in (1, 2):
    c = draw(shared, round)
    alone = {client: train(trainer, shared, client, round, control=c) for client in clients}
    for client, result in trainer.train_cohort(shared, clients, round, control=c).items():
      for one, other in zip(
        jax.tree.leaves((result.params, result.control)),
        jax.tree.leaves((alone[client].params, alone[client].control)),
        strict=True,
      ):
        assert np.linalg.norm(one - other) <= 1e-5 * max(1.0, float(np.linalg.norm(other)))


def test_a_result_does_not_depend_on_a_control_of_before(run, trainer):
  shared, (one, other) = run.setup.shared, (draw(run.setup.shared, seed) for seed in range(2))
  alone = train(trainer, shared, 3, 1, control=other)
  trainer.train_cohort(shared, range(4), 1, control=one)
  assert_same_bits(train(trainer, shared, 3, 1, control=other).control, alone.control)


def test_a_newcomer_after_the_last_round_is_not_corrected(run, trainer, corrections):
  train(trainer, run.setup.shared, 9, 4)
  assert all((leaf == 0).all() for leaf in jax.tree.leaves(corrections))
