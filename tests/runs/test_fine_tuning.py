"""Local fine-tuning of a finished run, as `fed.finetune` asks for it."""

import functools
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from tqdm import tqdm

from afspl_jax.federation.client.client_store import ClientStore
from afspl_jax.federation.privacy.dp_sgd_batches import stacked
from afspl_jax.models.captioner import module_leaves
from afspl_jax.runs.fine_tuning import fine_tune, personal_params
from afspl_jax.runs.frozen import load_pair
from afspl_jax.runs.scoring.rescore import EvaluationRequest, evaluate_run
from afspl_jax.runs.trained.trained_prompter import open_trained_prompter
from afspl_jax.storage.pytrees import named_leaves
from tests.recorded_run import recorded_run

SILENT = functools.partial(tqdm, disable=True)
CHOSEN = 5  # of two rounds and two local ones


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_checkpoints, shapes_dir):
  """Eight sites without local prompts, which tune the global model, and two that took no part."""
  fields = {
    "fed.rounds": 2,
    "fed.finetune": 2,
    "fed.newcomers": 2,
    "fed.clients_per_round": 8,
    "fed.cohort": 4,
    "prompter.local": False,
    "uplink.select": "dense",
  }
  folder = tmp_path_factory.getbasetemp() / "fine_tuned"
  return recorded_run(folder, tiny_checkpoints, shapes_dir, **fields)


@pytest.fixture(autouse=True)
def features(run, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(run.path.parent / "features"))


def names(run) -> list[str]:
  return sorted(run.setup.clients["train"])[:8]


def state(folder: Path, name: str, round: int) -> dict[str, np.ndarray]:
  found = load_file(folder / name / f"round_{round:06d}.safetensors")
  return {leaf.removeprefix("own/"): value for leaf, value in found.items()}


def same(one, other) -> bool:
  return one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)


def test_the_local_rounds_are_those_of_a_client_on_its_own(run):
  setup, optim = run.setup, run.config.optim
  start = setup.global_params(run.checkpoint(2)["params"])
  frozen = module_leaves(load_pair(run.config, locate(run)).language_model)
  params, cohort = stacked([start] * 4), names(run)[4:]
  for round, first_step in ((3, 2), (4, 3)):  # the schedule has two steps of warm-up and two more
    batches = [
      setup.splits["train"].local_batches(
        setup.clients["train"][name],
        optim.local_steps,
        optim.batch_size,
        np.random.default_rng((run.config.seed, round, client)),
      )
      for client, name in enumerate(cohort, start=4)
    ]
    reference = jax.tree.map(np.copy, params)
    params, _ = setup.trainer.program(
      params, frozen, reference, stacked(batches, axis=1), jnp.asarray(first_step, jnp.int32)
    )
    params = jax.device_get(params)
    for place, name in enumerate(cohort):
      found = state(run.path / "finetuned", name, round)
      expected = named_leaves(jax.tree.map(lambda leaf, i=place: leaf[i], params))
      for leaf, value in expected.items():
        np.testing.assert_allclose(found[leaf], value, rtol=1e-5, atol=1e-6, err_msg=leaf)


def locate(run) -> dict[str, Path]:
  return {kind: Path(getattr(run.config.backbone, kind)) for kind in ("clip", "t5")}


def test_a_site_keeps_the_model_with_the_smallest_loss_on_its_part_of_validation(run):
  setup, split = run.setup, run.setup.splits["validation"]
  start = setup.global_params(run.checkpoint(2)["params"])
  kept = []
  for name in names(run):
    rows = setup.clients["validation"][name].tolist()
    models = [named_leaves(start)]
    models += [state(run.path / "finetuned", name, round) for round in (3, 4)]
    trees = [
      jax.tree.unflatten(jax.tree.structure(start), [m[leaf] for leaf in named_leaves(start)])
      for m in models
    ]
    assert rows
    losses = [setup.evaluator.loss(tree, split, rows) for tree in trees]
    kept.append(int(np.argmin(losses)))
    assert same(state(run.path / "finetuned", name, CHOSEN), models[kept[-1]])
  assert len(set(kept)) > 1  # otherwise nothing was chosen


def test_sites_that_took_no_part_are_not_tuned_and_nothing_is_sent(run):
  assert sorted(ClientStore(run.path / "finetuned").sites()) == names(run)
  assert len([r for r in run.replies if r.metadata.message_type == "train"]) == 2 * 8
  shared = run.checkpoint(2)["params"]
  newcomer = named_leaves(personal_params(run.setup, shared, 9, 2))
  assert same(newcomer, named_leaves(run.setup.trainer.personal(shared, 9, 2)))


def test_the_tuned_models_are_scored_as_personalised_ones_and_evaluated_again(run):
  found = evaluate_run(run.path, EvaluationRequest(personalised=True))
  assert found.summary["scores"]["cider"]["value"] == run.line("test_personal")["cider"]
  assert run.line("test_personal")["cider"] != run.line("test")["cider"]
  assert {line["client"] for line in run.lines("sites.jsonl")} <= set(names(run))


def test_a_trained_model_of_a_site_is_the_tuned_one_after_the_last_round_only(run):
  site = names(run)[0]
  tuned = open_trained_prompter(run.path, site=site)
  found = {**named_leaves(tuned.shared), **named_leaves(tuned.local)}
  assert same(found, state(run.path / "finetuned", site, CHOSEN))
  before = open_trained_prompter(run.path)
  assert same(named_leaves(before.shared), named_leaves(run.checkpoint(2)["params"]))


def test_an_interrupted_run_repeats_one_cohort_and_ends_with_the_same_bits(run, tmp_path):
  folder = run.path / "finetuned"
  whole = tmp_path / "whole"
  shutil.copytree(folder, whole)
  done = {file: file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")}
  interrupted = names(run)[2]
  (folder / interrupted / f"round_{CHOSEN:06d}.safetensors").unlink()  # killed before it chose
  fine_tune(run.setup, run.checkpoint(2)["params"], SILENT)
  for name in names(run):
    assert same(state(folder, name, CHOSEN), state(whole, name, CHOSEN))
  again = {file for file, time in done.items() if file.stat().st_mtime_ns != time}
  assert {file.parent.name for file in again} == set(names(run)[:4])
