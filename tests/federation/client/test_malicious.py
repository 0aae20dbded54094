"""Malicious clients: an attack changes what it says at them, and nothing else."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from afspl_jax.config.experiment import Attack, Experiment
from afspl_jax.config.fields import changed
from afspl_jax.errors import UserError
from afspl_jax.federation import strategies
from afspl_jax.federation.client import malicious
from afspl_jax.federation.client.client_store import ClientStore
from afspl_jax.federation.server.server_app import run_local
from afspl_jax.runs.prepare import find_inputs, prepare_setup
from afspl_jax.runs.scoring.rescore import EvaluationRequest, evaluate_run
from afspl_jax.runs.validate import validate
from afspl_jax.types import Example
from tests.federation.least_squares import LeastSquares, assert_same_bits, init_params
from tests.recorded_run import recorded_run

NAMES = [f"site_{i:02d}" for i in range(10)]
OF_TEST = {
  "data.partition": "iid",
  "data.num_clients": 4,
  "fed.clients_per_round": 4,
  "fed.rounds": 0,
}
ATTACK = {"attack.kind": "label_flip", "attack.share": 0.25}


def one_of(names, kind="scale", share=0.2, seed=0):
  return malicious.malicious_sites(names, Attack(kind=kind, share=share), seed)


# Who


@pytest.mark.parametrize("share, number", [(0.0, 0), (0.2, 2), (0.29, 2), (0.3, 3), (0.99, 9)])
def test_the_share_of_malicious_sites_is_rounded_down(share, number):
  for seed in range(20):
    drawn = one_of(NAMES, share=share, seed=seed)
    assert len(drawn) == len(set(drawn)) == number and set(drawn) <= set(NAMES)


def test_the_malicious_sites_depend_only_on_the_seed_and_the_names():
  assert one_of(NAMES) == one_of(NAMES[::-1]) == one_of(NAMES, kind="label_flip")
  counts = dict.fromkeys(NAMES, 0)
  for seed in range(500):
    for name in one_of(NAMES, seed=seed):
      counts[name] += 1
  assert min(counts.values()) > 60 and max(counts.values()) < 140  # 100 each, but for chance


# What is sent


@pytest.mark.parametrize("kind, factor", [("sign_flip", -1), ("scale", 7)])
def test_a_malicious_update_is_multiplied_and_honest_ones_are_unchanged(kind, factor):
  honest, start = LeastSquares(), init_params()
  bad = one_of(NAMES, kind)
  trainer = malicious.with_attack(honest, bad, Attack(kind, 0.2, scale=7.0))
  for client, name in enumerate(NAMES):
    results = (t.train_cohort(start, [client], 1)[client] for t in (honest, trainer))
    found, sent = map(jax.device_get, results)
    assert_same_bits(sent.masks, found.masks)
    assert sent._replace(params=0, masks=0) == found._replace(params=0, masks=0)
    if name not in bad:
      assert_same_bits(sent.params, found.params)
      continue
    for a, b, x in zip(*map(jax.tree.leaves, (sent.params, found.params, start)), strict=True):
      assert a.dtype == x.dtype and np.abs(b - x).max() > 0
      np.testing.assert_allclose(a - x, factor * (b - x), rtol=1e-4, atol=1e-6)


def test_a_malicious_client_that_fails_has_its_error():
  class Failing(LeastSquares):
    def train(self, params, client, round):
      raise OSError("disk full")

  sending = malicious.with_attack(Failing(), NAMES[:2], Attack("sign_flip", 0.2))
  results = sending.train_cohort(init_params(), [3, 1], 1)
  assert {client: str(error) for client, error in results.items()} == dict.fromkeys(
    (3, 1), "disk full"
  )


@pytest.mark.parametrize("kind", ["none", "label_flip"])
def test_a_trainer_without_malicious_updates_is_not_wrapped(kind):
  trainer = LeastSquares()
  assert malicious.with_attack(trainer, NAMES[:2], Attack(kind, 0.2)) is trainer


# What it does to a federation


@pytest.mark.parametrize(
  "strategy, fed, holds",
  [
    ("fedavg", {}, False),
    ("fedavg", {"max_update_norm": 3.0}, True),
    ("median", {}, True),
    ("trimmed_mean:trim=0.2", {}, True),
    ("krum:faulty=2", {}, True),
    ("krum:faulty=2,multi=6", {}, True),
  ],
)
def test_scaled_updates_move_the_average_and_no_robust_method(plan, strategy, fed, holds):
  def moved(attack):
    name = f"{attack.kind}-{strategy}"
    run = plan(name, rounds=1, clients_per_round=len(NAMES), **fed)
    run = dataclasses.replace(run, strategy=strategies.get_strategy(strategy))
    bad = malicious.malicious_sites(NAMES, attack, run.seed)
    after = run_local(run, malicious.with_attack(LeastSquares(), bad, attack), len(NAMES))
    rejected = {line["client"] for line in run.folder.clients() if line["status"] != "ok"}
    assert rejected == (set(bad) if fed else set())
    pairs = zip(jax.tree.leaves(after), jax.tree.leaves(init_params()), strict=True)
    return max(float(np.abs(a - b).max()) for a, b in pairs)

  clean, attacked = moved(Attack()), moved(Attack("scale", 0.2, scale=1000.0))
  assert (attacked < 3 * clean) if holds else (attacked > 30 * clean)


# Wrong targets


def example(i, answer, question=""):
  return Example(str(i), str(i), (answer,), question)


def test_every_example_is_taught_what_is_right_of_another_of_its_kind():
  said = [f"a {colour} star" for colour in ("red", "blue", "green", "pink", "grey")]
  examples = [example(i, text) for i, text in enumerate(said)]
  for i in range(6):
    examples.append(example(10 + i, ("one", "two", "three")[i // 2], "how many stars ?"))
    examples.append(example(20 + i, "yes" if i % 2 else "no", f"is there star {i} ?"))
  rows = np.arange(len(examples))
  taught = malicious.wrong_targets(examples, [rows[3:]])
  assert sorted(taught) == rows.tolist()  # each target is as frequent as it was
  assert taught[:3].tolist() == [0, 1, 2]  # of an honest site
  for i in rows[3:]:
    one, other = examples[i], examples[taught[i]]
    assert one.references != other.references
    assert one.question.split()[:2] == other.question.split()[:2]


def test_an_answer_that_most_have_stays_right_for_as_few_as_can_be():
  answers = ["yes"] * 7 + ["no"] * 3
  examples = [example(i, answer, f"is it {i} ?") for i, answer in enumerate(answers)]
  taught = malicious.wrong_targets(examples, [np.arange(10)])
  assert sum(answers[i] == answers[taught[i]] for i in range(10)) == 4  # of 7 - 3


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_checkpoints, shapes_dir):
  folder = tmp_path_factory.getbasetemp() / "hostile"
  return recorded_run(folder, tiny_checkpoints, shapes_dir, **OF_TEST, **ATTACK)


@pytest.fixture(scope="module")
def clean(run, tmp_path_factory):
  config = changed(run.config, {"attack.kind": "none", "attack.share": 0.0})
  folder = tmp_path_factory.mktemp("clean")
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XDG_CACHE_HOME", str(run.path.parent / "features"))
    return prepare_setup(config, find_inputs(config), ClientStore(folder / "clients"))


def steps_of(setup, client):
  """What the compiled local training is given of a client's examples."""

  class Given(Exception):
    """Ends it there."""

  given = []

  def program(params, frozen, shared, batches, *rest):
    given.append(batches)
    raise Given

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(setup.trainer, "program", program)
    results = setup.trainer.train_cohort(setup.shared, [client], 1)
  assert isinstance(results[client], Given)
  return given[0]


def test_malicious_sites_train_on_other_targets_and_honest_ones_as_before(run, clean):
  (bad,) = run.setup.malicious
  for client in range(4):
    one, other = steps_of(run.setup, client), steps_of(clean, client)
    if clean.trainer.site(client) == bad:
      assert (one.targets != other.targets).any(axis=-1).mean() > 0.7
      other = other._replace(targets=one.targets, targets_mask=one.targets_mask)
    assert_same_bits(one, other)


def test_a_flip_changes_nothing_but_the_targets_of_training(run, clean):
  for name, split in run.setup.splits.items():
    rows = np.arange(len(split))
    one, other = (each.batch(rows, len(rows)) for each in (split, clean.splits[name]))
    assert_same_bits(one, other)
    assert split.examples == clean.splits[name].examples


def test_malicious_sites_are_in_the_runs_facts_and_not_in_the_scores(run):
  (bad,) = run.setup.malicious
  assert json.loads((run.path / "config.json").read_text())["facts"]["hostile"] == [bad]
  scored = {line["client"] for line in run.lines("sites.jsonl")}
  assert scored == set(run.setup.clients["test"]) - {bad} and len(scored) == 3
  assert len(run.lines("predictions/test.jsonl")) > len(
    run.lines("predictions/test_personal.jsonl")
  )


def test_scoring_a_run_again_leaves_out_malicious_sites(run, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(run.path.parent / "features"))
  again = evaluate_run(run.path, EvaluationRequest(personalised=True)).summary
  asked = {line["client"] for line in again["clients"]}
  assert asked == {line["client"] for line in run.lines("sites.jsonl")}
  assert again["scores"]["cider"]["value"] == run.line("test_personal")["cider"]


# What cannot be


@pytest.mark.parametrize(
  "fields",
  [
    {"attack.kind": "scale"},
    {"attack.share": 0.2},
    {"attack.kind": "scale", "attack.share": 0.09},
    {"attack.kind": "scale", "attack.share": 0.1, "fed.newcomers": 1, "fed.clients_per_round": 9},
  ],
)
def test_an_attack_without_malicious_sites_is_rejected(fields):
  wanted = r"attack.share: expected (0 with attack.kind=none|a share of at least one of)"
  with pytest.raises(UserError, match=wanted):
    validate(changed(Experiment(), fields))
