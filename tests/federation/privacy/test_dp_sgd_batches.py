"""DP-SGD at clients of one process: what they draw, what leaves them, and what they have spent."""

import jax
import numpy as np
import pytest
from scipy import stats

from afspl_jax.config.experiment import Experiment
from afspl_jax.config.fields import changed
from afspl_jax.errors import UserError
from afspl_jax.federation.client.client_store import ClientStore
from afspl_jax.federation.contracts import SiteSpent, Update
from afspl_jax.federation.privacy import noise as noise_module
from afspl_jax.federation.privacy.dp_sgd_batches import PoissonBatches
from afspl_jax.federation.privacy.noise import coarse_step
from afspl_jax.runs.prepare import find_inputs, prepare_setup
from afspl_jax.runs.validate import validate
from tests.recorded_run import FIELDS

PRIVATE = {"privacy.example_clip": 0.5, "privacy.example_noise": 2.0, "optim.balance": 0.0}
OF_TEST = {
  "fed.cohort": 2,
  "fed.clients_per_round": 4,
  "data.num_clients": 4,
  "data.partition": "iid",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("private")


@pytest.fixture(scope="module")
def setup(folder, tiny_checkpoints, shapes_dir):
  fields = {"backbone.clip": str(tiny_checkpoints.clip), "backbone.t5": str(tiny_checkpoints.t5)}
  fields |= FIELDS | OF_TEST | PRIVATE | {"data.dir": str(shapes_dir)}
  config = changed(Experiment(), fields)
  validate(config)
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    yield prepare_setup(config, find_inputs(config), ClientStore(folder / "clients"))


@pytest.fixture
def secret(setup, tmp_path):
  """As of a process that starts."""
  return PoissonBatches(setup.config, setup.splits["train"], setup.clients["train"], tmp_path)


def flat(tree):
  return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def test_examples_are_drawn_one_by_one_with_the_stated_probability(setup, secret, monkeypatch):
  monkeypatch.setattr(setup.config.optim, "local_steps", 500)
  site, rows = next(iter(setup.clients["train"].items()))
  seen = []
  draws = setup.splits["train"].sampled_batches

  def watched(drawn, *args):
    seen.append(drawn)
    return draws(drawn, *args)

  monkeypatch.setattr(setup.splits["train"], "sampled_batches", watched)
  batches, found = secret.sample_batches([site], {"leaf": np.zeros(1)})
  (drawn,) = seen
  q = 4 / len(rows)
  # Of all, of each example, and together: nothing ties one to another.
  assert stats.binomtest(int(drawn.sum()), drawn.size, q).pvalue > 1e-6
  assert np.abs(drawn.mean(axis=0) - q).max() < 6 * (q * (1 - q) / 500) ** 0.5
  assert drawn.sum(axis=1).var() == pytest.approx(len(rows) * q * (1 - q), rel=0.4)
  assert found.expected.tolist() == [4.0]
  real = batches.targets_mask.any(axis=-1)[:, 0]
  np.testing.assert_array_equal(real.sum(axis=1), drawn.sum(axis=1))  # nobody drawn is left out
  assert real.shape[1] % 4 == 0


def test_a_client_with_less_than_a_batch_is_in_every_one_whole(setup, secret, monkeypatch):
  monkeypatch.setattr(setup.config.optim, "batch_size", 64)
  site, rows = next(iter(setup.clients["train"].items()))
  batches, found = secret.sample_batches([site], {"leaf": np.zeros(1)})
  assert batches.targets.shape[2] == 64
  assert (batches.targets_mask.any(axis=-1).sum(axis=-1) == len(rows)).all()
  assert found.expected.tolist() == [len(rows)]


def test_noise_is_of_the_stated_size_everywhere_and_never_the_same(setup, secret):
  sites = list(setup.clients["train"])[:2]
  noise = [
    flat(secret.sample_batches(sites, setup.global_params(setup.shared))[1].noise) for _ in range(2)
  ]
  for each in noise:
    assert stats.kstest(each * coarse_step(1.0), "norm").pvalue > 1e-6
  assert np.mean(noise[0] == noise[1]) < 1e-3  # a few meet on a grid of 2**16 steps


def test_no_draw_is_ever_repeated_though_the_seed_is_the_same(setup, secret, tmp_path):
  again = PoissonBatches(setup.config, setup.splits["train"], setup.clients["train"], tmp_path)
  sites = list(setup.clients["train"])[:1]
  one, other = (each.sample_batches(sites, {"leaf": np.zeros(8)}) for each in (secret, again))
  assert not np.array_equal(one[1].noise["leaf"], other[1].noise["leaf"])
  assert not all(map(np.array_equal, one[0], other[0]))


def test_nothing_leaves_a_client_but_what_noise_was_in(setup):
  trainer = setup.trainer
  results = []
  for _ in range(2):  # the second as after a crash
    results.append(list(trainer.train_cohort(setup.shared, [0, 1], 1).values()))
  for result in (*results[0], *results[1]):
    assert result.metrics == {}
    assert result.control is None
  updates = [flat(result.params) - flat(setup.shared) for pair in results for result in pair]
  for one in range(4):
    assert np.isfinite(updates[one]).all() and np.abs(updates[one]).max() > 0
    for other in range(one):
      assert not np.allclose(updates[one], updates[other], atol=1e-3)


def test_every_training_of_a_round_is_paid_for_also_if_it_is_the_same_round(setup, folder):
  trainer, site = setup.trainer, setup.trainer.site(3)
  before = trainer.private_batches.epsilon(site)
  assert before == 0
  spent = []
  for round, other in ((1, 0), (1, 1), (2, 2)):
    trainer.train_cohort(setup.shared, [3, other], round)  # as many as elsewhere: one program
    spent.append(trainer.private_batches.epsilon(site))
  assert 0 < spent[0] < spent[1] < spent[2]
  parts = setup.config, setup.splits["train"], setup.clients["train"]
  fresh = PoissonBatches(*parts, folder / "clients")
  assert fresh.epsilon(site) == spent[2]
  assert fresh.epsilon(site, 1) > spent[2]
  assert site in fresh.spent_text() and "3 rounds" in fresh.spent_text()


def test_a_round_is_paid_for_before_anything_of_it_is_kept_or_sent(setup, monkeypatch):
  trainer, site = setup.trainer, setup.trainer.site(2)

  def full(store, name, *args):
    assert trainer.private_batches.epsilon(name) > 0
    raise UserError("disk full")

  monkeypatch.setattr(ClientStore, "save", full)
  results = trainer.train_cohort(setup.shared, [2, 1], 1)
  assert all(isinstance(result, UserError) for result in results.values())
  assert trainer.private_batches.epsilon(site) > 0


def test_a_new_clients_own_prompt_is_not_made_of_its_examples(setup):
  own = [setup.trainer.personal(setup.shared, client, -1)["local"]["prompt"] for client in (0, 1)]
  np.testing.assert_array_equal(own[0], own[1])
  np.testing.assert_array_equal(own[0], setup.local["local"]["prompt"])


@pytest.mark.parametrize(
  "fields, says",
  [
    ({"optim.balance": 0.01}, "optim.balance: expected 0 with privacy.example_clip"),
    ({"optim.contrast": 0.1}, "optim.contrast: expected 0 with privacy.example_clip"),
    ({"privacy.example_noise": 0.0}, "privacy.example_noise: expected a number above 0"),
    ({"privacy.example_clip": -1.0}, "privacy.example_clip: expected a finite number, at least 0"),
    ({"fed.strategy": "scaffold", "uplink.select": "dense"}, "fed.strategy: .* without controls"),
    ({"fed.strategy": "qfedavg"}, "fed.strategy: .* without controls and losses"),
    ({"fed.selection": "power_of_choice"}, "fed.selection: .* losses are not sent"),
  ],
)
def test_settings_that_would_tell_past_the_noise_are_rejected(fields, says):
  with pytest.raises(UserError, match=says):
    validate(changed(Experiment(), PRIVATE | fields))


def test_a_delta_that_says_nothing_is_rejected(setup, tmp_path, monkeypatch):
  monkeypatch.setattr(setup.config.privacy, "delta", 0.2)
  with pytest.raises(UserError, match=r"privacy.delta: expected well below 1 / "):
    PoissonBatches(setup.config, setup.splits["train"], setup.clients["train"], tmp_path)


def test_noise_that_is_too_small_for_32_bit_sums_is_rejected(setup, tmp_path, monkeypatch):
  """A clipped example is at most 2**16 / noise steps long; four batches of them fit 2**31."""
  parts = setup.config, setup.splits["train"], setup.clients["train"], tmp_path
  least = 4 * setup.config.optim.batch_size * 2**16 / 2**31
  monkeypatch.setattr(setup.config.privacy, "example_noise", least)
  PoissonBatches(*parts)
  monkeypatch.setattr(setup.config.privacy, "example_noise", least * 0.99)
  with pytest.raises(
    UserError, match=r"^privacy.example_noise: expected at least .* overflow; got"
  ):
    PoissonBatches(*parts)


def test_params_that_the_account_does_not_cover_are_rejected(setup, secret, monkeypatch):
  monkeypatch.setattr(noise_module, "MOST_NUMBERS", 10)
  params = setup.global_params(setup.shared)
  with pytest.raises(ValueError, match="expected at most 10 numbers in a release"):
    secret.sample_batches(list(setup.clients["train"])[:1], params)


@pytest.fixture
def budgeted(setup, secret, monkeypatch):
  """A budget for exactly two rounds of the client with the most examples: others have less."""
  sizes = {site: len(rows) for site, rows in setup.clients["train"].items()}
  largest = max(sizes, key=lambda site: sizes[site])
  monkeypatch.setattr(setup.config.privacy, "example_epsilon", secret.epsilon(largest, 2) + 1e-9)
  return largest


def test_a_client_refuses_the_round_that_would_exceed_its_budget(setup, secret, budgeted, tmp_path):
  for _ in range(2):
    secret.afford(budgeted)
    secret.charge(budgeted)
  parts = setup.config, setup.splits["train"], setup.clients["train"]
  for again in (secret, PoissonBatches(*parts, tmp_path)):  # also after a start: it is on disk
    with pytest.raises(SiteSpent, match=r"^privacy.example_epsilon=.* of this site is spent$"):
      again.afford(budgeted)
    assert again.epsilon(budgeted) <= setup.config.privacy.example_epsilon
    assert again.epsilon(budgeted, 1) > setup.config.privacy.example_epsilon


def test_budgets_are_each_clients_own(setup, secret, budgeted):
  """A client with fewer examples pays more for a round, and stops earlier."""
  for site in setup.clients["train"]:
    rounds = 0
    while secret.epsilon(site, 1) <= setup.config.privacy.example_epsilon:
      secret.afford(site)
      secret.charge(site)
      rounds += 1
    with pytest.raises(SiteSpent):
      secret.afford(site)
    assert rounds <= 2


def test_a_spent_client_neither_trains_nor_pays_and_the_others_go_on(setup, monkeypatch):
  trainer, site = setup.trainer, setup.trainer.site(0)
  refuse = trainer.private_batches.afford

  def spent(name):
    if name == site:
      raise SiteSpent("privacy.example_epsilon=1 of this site is spent")
    refuse(name)

  monkeypatch.setattr(trainer.private_batches, "afford", spent)
  before = trainer.private_batches.epsilon(site)
  results = trainer.train_cohort(setup.shared, [0, 1], 9)
  assert isinstance(results[0], SiteSpent) and isinstance(results[1], Update)
  assert trainer.private_batches.epsilon(site) == before


def test_a_budget_that_allows_no_round_is_rejected_at_the_start(setup, tmp_path, monkeypatch):
  monkeypatch.setattr(setup.config.privacy, "example_epsilon", 1e-6)
  with pytest.raises(UserError, match=r"privacy.example_epsilon: expected at least .* one round"):
    PoissonBatches(setup.config, setup.splits["train"], setup.clients["train"], tmp_path)


def test_a_budget_without_dp_sgd_is_rejected():
  fields = PRIVATE | {"privacy.example_clip": 0.0, "privacy.example_epsilon": 1.0}
  with pytest.raises(UserError, match=r"privacy.example_epsilon: expected 0 without"):
    validate(changed(Experiment(), fields))
