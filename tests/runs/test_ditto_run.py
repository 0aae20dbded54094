"""A federation in which every site trains a personal copy near the global model (Ditto)."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file

from afspl_jax import cli
from afspl_jax.config.experiment import Experiment
from afspl_jax.config.fields import changed
from afspl_jax.errors import UserError
from afspl_jax.federation.client.client_store import ClientStore
from afspl_jax.federation.client.ditto import DittoTrainer
from afspl_jax.federation.privacy.dp_sgd_batches import stacked
from afspl_jax.models.captioner import Captioner
from afspl_jax.models.prompter.local import join_local
from afspl_jax.runs.fine_tuning import personal_params
from afspl_jax.runs.frozen import load_pair, make_prompter
from afspl_jax.runs.trained.finished_run import find_backbones
from afspl_jax.runs.trained.trained_prompter import open_trained_prompter
from afspl_jax.runs.validate import validate
from afspl_jax.storage.pytrees import named_leaves
from afspl_jax.training.mesh import make_mesh
from afspl_jax.training.train_step import make_local_training
from tests.federation.test_privacy import bodies
from tests.recorded_run import recorded_run
from tests.resumed_run import assert_same_states, killed_and_resumed

FIELDS = {"fed.rounds": 2, "fed.newcomers": 1, "fed.clients_per_round": 9, "optim.local_steps": 2}
LAM = 0.5


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_checkpoints, shapes_dir):
  """Two runs that differ in the copies alone."""
  base = tmp_path_factory.getbasetemp()
  given = tiny_checkpoints, shapes_dir
  return [
    recorded_run(base / f"ditto_{lam}", *given, **FIELDS, **{"fed.ditto": lam})
    for lam in (LAM, 0.0)
  ]


@pytest.fixture(scope="module")
def run(runs):
  return runs[0]


@pytest.fixture(autouse=True)
def features(run, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(run.path.parent / "features"))


def copy(run, name: str, round: int) -> dict[str, np.ndarray]:
  found = load_file(run.path / "ditto" / name / f"round_{round:06d}.safetensors")
  return {leaf.removeprefix("own/"): value for leaf, value in found.items()}


def same(one, other) -> bool:
  return one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)


def test_a_copy_takes_its_steps_near_the_global_params_that_were_received(run):
  """Li et al. 2021, Algorithm 1: v <- v - lr (grad F(v) + lam (v - w)), with Adam's steps."""
  setup, optim, config = run.setup, run.config.optim, run.config
  pair = load_pair(config, find_backbones(config, setup.facts["backbones"], {}))
  captioner = Captioner(make_prompter(config, pair, contrast=False), pair.language_model)

  def term(v, w):
    names = [name for name in named_leaves(v) if name != "local/prompt"]
    pairs = [(named_leaves(v)[name], named_leaves(w)[name]) for name in names]
    return LAM / 2 * sum(jnp.sum((a - b) ** 2) for a, b in pairs)

  program = make_local_training(captioner, optim, 2, term, make_mesh())
  names = sorted(setup.clients["train"])[:9]
  copies = {name: setup.trainer.personal(setup.shared, i, -1) for i, name in enumerate(names)}
  for round, received in ((1, setup.shared), (2, run.checkpoint(1)["params"])):
    batches = [
      setup.splits["train"].local_batches(
        setup.clients["train"][name],
        optim.local_steps,
        optim.batch_size,
        np.random.default_rng((config.seed, round, client)),
      )
      for client, name in enumerate(names)
    ]
    near = [join_local(copies[name], received) for name in names]
    trained, _ = program(
      stacked([copies[name] for name in names]),
      setup.trainer._copies._frozen,
      stacked(near),
      stacked(batches, axis=1),
      jnp.asarray((round - 1) * optim.local_steps, jnp.int32),
    )
    trained = jax.device_get(trained)
    for place, name in enumerate(names):
      copies[name] = jax.tree.map(lambda leaf, i=place: leaf[i], trained)
      found = copy(run, name, round)
      for leaf, value in named_leaves(copies[name]).items():
        np.testing.assert_allclose(found[leaf], value, rtol=1e-4, atol=1e-4, err_msg=leaf)


def test_the_global_model_and_every_message_are_as_without_copies(runs, capsys):
  ditto, plain = runs
  equal = jax.tree.map(np.array_equal, ditto.checkpoint(2), plain.checkpoint(2))
  assert jax.tree.all(equal)
  records = [[reply.content for reply in each.replies] for each in runs]
  assert bodies(records[0]) == bodies(records[1])
  assert ditto.bytes_up == plain.bytes_up
  assert cli.main(["audit", str(ditto.path)]) == 0, capsys.readouterr().out


def test_the_copy_is_the_personalised_model(run):
  name, shared = sorted(run.setup.clients["train"])[0], run.checkpoint(2)["params"]
  assert same(named_leaves(personal_params(run.setup, shared, 0, 2)), copy(run, name, 2))
  opened = open_trained_prompter(run.path, site=name)
  assert same(named_leaves(join_local(opened.shared, opened.local)), copy(run, name, 2))
  earlier = open_trained_prompter(run.path, round=1, site=name)
  assert same(named_leaves(join_local(earlier.shared, earlier.local)), copy(run, name, 1))
  plain = named_leaves(open_trained_prompter(run.path).shared)
  assert same(plain, named_leaves(shared))


def test_a_newcomer_begins_as_the_global_model(run):
  newcomer, shared = sorted(run.setup.clients["train"])[9], run.checkpoint(2)["params"]
  before = named_leaves(personal_params(run.setup, shared, 9, 2))
  assert same(
    {name: leaf for name, leaf in before.items() if "local/" not in name}, named_leaves(shared)
  )
  folder = run.path / "joined" / newcomer
  joined = [load_file(folder / f"round_00000{round}.safetensors") for round in (0, 1)]
  start, end = ({leaf.removeprefix("own/"): x for leaf, x in each.items()} for each in joined)
  assert same(start, before) and not same(end, before)


def test_a_run_that_was_killed_ends_with_the_same_bits(run, tmp_path):
  again = killed_and_resumed(run, tmp_path / "again")
  assert_same_states(again, run.path)
  found = ocp.PyTreeCheckpointer().restore(again / "checkpoints" / "2" / "state")
  assert jax.tree.all(jax.tree.map(np.array_equal, found, run.checkpoint(2)))


def test_nothing_is_sent_of_a_client_whose_copy_fails(run, tmp_path, monkeypatch):
  trainer = run.setup.trainer
  assert isinstance(trainer, DittoTrainer)
  monkeypatch.setattr(trainer._trainer, "_store", ClientStore(tmp_path / "clients"))
  monkeypatch.setattr(trainer._copies, "_store", ClientStore(tmp_path / "ditto"))
  whole = trainer.personal(run.setup.shared, 0, 0)
  trainer._copies.set_state(0, 0, jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), whole))
  damaged = tmp_path / "ditto" / trainer.site(1) / "round_000000.safetensors"
  damaged.parent.mkdir()
  damaged.write_bytes(b"not this")
  results = trainer.train_cohort(run.setup.shared, [0, 1, 2], 1)
  assert isinstance(results[0], FloatingPointError) and isinstance(results[1], UserError)
  assert results[2].site == trainer.site(2)
  assert ClientStore(tmp_path / "clients").sites() == [trainer.site(2)]


@pytest.mark.parametrize(
  "others",
  [
    {"fed.share": "none"},
    {"fed.finetune": 1},
    {"privacy.example_clip": 1.0, "optim.balance": 0.0},
  ],
)
def test_what_cannot_be_together_is_rejected(others):
  validate(changed(Experiment(), others))
  with pytest.raises(UserError, match=r"fed.ditto: expected 0 with .*; got 0.1"):
    validate(changed(Experiment(), others | {"fed.ditto": 0.1}))


def test_copies_go_with_noise_masks_and_controls_since_they_stay():
  for others in (
    {"secure.aggregation": True},
    {"privacy.dp": "central", "privacy.noise": 1.0},
    {"fed.strategy": "scaffold"},
  ):
    validate(changed(Experiment(), others | {"uplink.select": "dense", "fed.ditto": 0.1}))
