"""A federation in which the mapper stays at the sites, as in FedPer and FedRep."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file

from afspl_jax import cli
from afspl_jax.config.experiment import Experiment, Fed
from afspl_jax.config.fields import changed
from afspl_jax.errors import UserError
from afspl_jax.federation.privacy.dp_sgd_batches import stacked
from afspl_jax.federation.protocol import disclosure_list
from afspl_jax.models.prompter.local import join_local, split_like
from afspl_jax.runs.fine_tuning import personal_params
from afspl_jax.runs.trained.trained_prompter import open_trained_prompter
from afspl_jax.runs.validate import validate
from afspl_jax.storage.pytrees import named_leaves
from afspl_jax.storage.run_lines import WIRE
from tests.recorded_run import recorded_run
from tests.resumed_run import assert_same_states, killed_and_resumed

STAY = {"local/prompt", "mapper/place", "mapper/project/bias", "mapper/project/kernel"}


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_checkpoints, shapes_dir):
  fields = {"fed.rounds": 2, "fed.local_leaves": "mapper/*", "uplink.select": "dense"}
  fields |= {"optim.local_steps": 2, "optim.local_only": 1, "fed.newcomers": 1}
  fields |= {"fed.clients_per_round": 9}
  folder = tmp_path_factory.getbasetemp() / "local_leaves"
  return recorded_run(folder, tiny_checkpoints, shapes_dir, **fields)


@pytest.fixture(autouse=True)
def features(run, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(run.path.parent / "features"))


def own(run, name: str, round: int) -> dict[str, np.ndarray]:
  found = load_file(run.path / "clients" / name / f"round_{round:06d}.safetensors")
  return {leaf.removeprefix("own/"): value for leaf, value in found.items() if "own/" in leaf}


def assert_near(found, expected):
  for name, leaf in expected.items():
    np.testing.assert_allclose(found[name], leaf, rtol=1e-5, atol=1e-5, err_msg=name)


def test_a_site_trains_its_leaves_from_round_to_round_and_the_server_averages_the_others(run):
  """Arivazhagan et al. 2019, Algorithms 1 and 2, with the steps of Collins et al. 2021."""
  setup, optim = run.setup, run.config.optim
  names = sorted(setup.clients["train"])[:9]
  sizes = np.array([len(setup.clients["train"][name]) for name in names])
  weights = sizes / sizes.sum()
  state = {name: setup.trainer.personal(setup.shared, i, 0) for i, name in enumerate(names)}
  shared = setup.shared
  for round in (1, 2):
    start = [join_local(shared, split_like(state[name], shared)[1]) for name in names]
    batches = [
      setup.splits["train"].local_batches(
        setup.clients["train"][name],
        optim.local_steps,
        optim.batch_size,
        np.random.default_rng((run.config.seed, round, client)),
        1 - run.config.prompter.local_drop,
      )
      for client, name in enumerate(names)
    ]
    trained, _ = setup.trainer.program(
      stacked(start),
      setup.trainer._frozen,
      stacked(start),
      stacked(batches, axis=1),
      jnp.asarray((round - 1) * optim.local_steps, jnp.int32),
    )
    trained = jax.device_get(trained)
    state = {n: jax.tree.map(lambda leaf, i=i: leaf[i], trained) for i, n in enumerate(names)}
    for name in names:
      kept = own(run, name, round)
      assert kept.keys() == STAY
      assert_near(kept, {leaf: named_leaves(state[name])[leaf] for leaf in STAY})
    mean = jax.tree.map(lambda leaf: np.tensordot(weights, np.float64(leaf), axes=1), trained)
    shared = jax.tree.map(np.float32, split_like(mean, shared)[0])
    if round == 2:
      assert_near(named_leaves(run.checkpoint(2)["params"]), named_leaves(shared))
  kernels = [own(run, name, 2)["mapper/project/kernel"] for name in names[:2]]
  assert not np.allclose(*kernels, atol=1e-3)


def test_the_server_neither_has_nor_gets_nor_sends_them(run, capsys):
  assert not {*named_leaves(run.checkpoint(2)["params"])} & STAY
  shared = sum(leaf.size for leaf in jax.tree.leaves(run.setup.shared))
  for message in (*run.sent, *run.replies):
    if message.metadata.message_type == "train":
      assert len(message.content["arrays"]["flat"].numpy()) == shared
  (head,) = [line["leaves"] for line in run.lines(WIRE) if "leaves" in line]
  assert not {leaf["name"] for leaf in head} & STAY
  assert cli.main(["audit", str(run.path)]) == 0, capsys.readouterr().out


def test_a_reply_with_a_leaf_that_stays_is_named_by_the_audit(run):
  leaves = [{"name": name} for name in ("fusion/score/bias", "mapper/place")]
  line = {"type": "train", "leaves": leaves, "records": {"arrays": {"entries": {}, "rows": [1, 1]}}}
  allowed = disclosure_list.allow_list(run.config)
  found = lambda fed: list(disclosure_list.not_allowed(line, allowed, fed))  # noqa: E731
  assert found(Fed()) == []
  place = "train  arrays  mapper/place"
  assert found(run.config.fed) == [(place, "a leaf that is not on the list")]


def test_the_global_model_and_a_newcomer_have_the_untrained_ones(run):
  shared, untrained = run.checkpoint(2)["params"], named_leaves(run.setup.local)
  newcomer = personal_params(run.setup, shared, 9, 2)
  for params in (run.setup.global_params(shared), newcomer, open_whole(run)):
    for name in STAY - {"local/prompt"}:  # a newcomer's is matched in the pool
      np.testing.assert_array_equal(named_leaves(params)[name], untrained[name])
  assert run.line("newcomer_before")["split"] and run.line("test_personal")["split"]


def open_whole(run, site: str = ""):
  trained = open_trained_prompter(run.path, site=site)
  return join_local(trained.shared, trained.local)


def test_a_sites_model_is_the_shared_leaves_with_its_own(run):
  name = sorted(run.setup.clients["train"])[0]
  shared = run.checkpoint(2)["params"]
  expected = own(run, name, 2) | named_leaves(shared)
  for params in (personal_params(run.setup, shared, 0, 2), open_whole(run, name)):
    found = named_leaves(params)
    assert found.keys() == expected.keys()
    assert all((found[leaf] == value).all() for leaf, value in expected.items())


def test_a_run_that_was_killed_ends_with_the_same_bits(run, tmp_path):
  again = killed_and_resumed(run, tmp_path / "again")
  assert_same_states(again, run.path)
  found = ocp.PyTreeCheckpointer().restore(again / "checkpoints" / "2" / "state")
  same = jax.tree.map(lambda a, b: np.array_equal(a, b), found, run.checkpoint(2))
  assert jax.tree.all(same)


ROUTED = {"prompter.routing": "sites"}
SCAFFOLD = {"fed.strategy": "scaffold", "uplink.select": "dense"}
DP_SGD = {"privacy.example_clip": 1.0, "optim.balance": 0.0}


@pytest.mark.parametrize(
  "fields, says",
  [
    ({"fed.share": "none", "fed.local_leaves": "mapper/*"}, "fed.local_leaves: expected none with"),
    (ROUTED | {"fed.local_leaves": "sites/*"}, "fed.local_leaves: expected patterns without keys"),
    ({"optim.local_only": 4}, "optim.local_only: expected less than optim.local_steps, 4;"),
    ({"fed.share": "none", "optim.local_only": 1}, "optim.local_only: expected 0 unless some"),
    ({"prompter.local": False, "optim.local_only": 1}, "optim.local_only: expected 0 unless"),
    (SCAFFOLD | {"optim.local_only": 1}, "optim.local_only: expected 0 with a strategy"),
    (DP_SGD | {"optim.local_only": 1}, "optim.local_only: expected 0 with a strategy"),
  ],
)
def test_what_cannot_be_together_is_rejected(fields, says):
  with pytest.raises(UserError, match=says):
    validate(changed(Experiment(), fields))


@pytest.mark.parametrize(
  "fields",
  [
    ROUTED | {"fed.local_leaves": "pool/prompts,mapper/*"},
    SCAFFOLD | {"fed.local_leaves": "mapper/*"},
    DP_SGD | {"fed.local_leaves": "mapper/*"},
    {"secure.aggregation": True, "uplink.select": "dense", "optim.local_only": 1},
    {"prompter.local": False, "fed.local_leaves": "mapper/*", "optim.local_only": 1},
  ],
)
def test_local_leaves_go_with_all_that_sums_or_corrects_the_shared_ones(fields):
  validate(changed(Experiment(), fields))
