from pathlib import Path

import pytest

from afspl_jax.config.experiment import Experiment
from afspl_jax.config.fields import changed
from afspl_jax.config.files import load_config
from afspl_jax.config.study import Study, cells
from afspl_jax.errors import UserError
from afspl_jax.runs.validate import validate

ROOT = Path(__file__).parents[2]
DIRICHLET = {"data.partition": "dirichlet", "data.dirichlet_alpha": 0.1}


def study(**changes) -> Study:
  settings = {
    "base": Experiment(),
    "settings": {"iid": {"data.partition": "iid"}, "skewed": DIRICHLET},
    "variants": {"full AFSPL": {}, "dense FedAvg": {"prompter.local": False}},
    "seeds": (3, 5),
  }
  return Study(**(settings | changes))


def complaint(**changes) -> str:
  with pytest.raises(UserError) as error:
    cells(study(**changes))
  assert "\n" not in str(error.value)
  return str(error.value)


def test_every_variant_of_the_first_seed_comes_first():
  names = [(c.seed, c.setting, c.variant) for c in cells(study())]
  expected = [(s, h) for s in (3, 5) for h in ("iid", "skewed")]
  assert names == [(*where, v) for where in expected for v in ("full AFSPL", "dense FedAvg")]


def test_a_cell_is_the_base_with_its_overrides_and_seed():
  first, second, third, *_ = cells(study(base=Experiment(seed=99)))
  assert first.config == changed(Experiment(), {"data.partition": "iid", "seed": 3})
  assert second.config.prompter.local is False and first.config.prompter.local is True
  assert third.config.data.dirichlet_alpha == 0.1


def test_a_setting_may_have_fewer_seeds():
  found = cells(study(fewer_seeds={"skewed": (5,)}))
  assert [c.seed for c in found if c.setting == "iid"] == [3, 3, 5, 5]
  assert [c.seed for c in found if c.setting == "skewed"] == [5, 5]


def test_a_variant_wins_over_its_setting():
  variants = {"full AFSPL": {"data.partition": "natural"}, "dense FedAvg": {}}
  kinds = [c.config.data.partition for c in cells(study(variants=variants, seeds=(0,)))]
  assert kinds == ["natural", "iid", "natural", "dirichlet"]


def test_the_base_is_not_changed():
  base = Experiment()
  cells(study(base=base))
  assert base == Experiment()


def test_cells_of_equal_configs_share_a_run_and_others_do_not():
  variants = {"full AFSPL": {}, "dense FedAvg": {"data.partition": "iid", "optim.balance": 0}}
  settings = {"iid": {"data.partition": "iid"}, "natural": {}}
  found = cells(study(variants=variants, settings=settings, seeds=(0, 1)))
  runs = {(c.setting, c.variant, c.seed): c.run for c in found}
  shared = [runs[s, "dense FedAvg", 0] for s in settings]
  assert shared[0] == shared[1]
  assert len(set(runs.values())) == 6


def test_an_int_and_an_equal_float_make_one_run():
  one, other = (
    cells(study(variants={"full AFSPL": {"optim.balance": value}, "dense FedAvg": {}}))[0]
    for value in (0, 0.0)
  )
  assert one.run == other.run and type(one.config.optim.balance) is float


@pytest.mark.parametrize(
  "overrides, parts",
  [
    ({"fed.round": 3}, ["fed.round: no such field", "fed.rounds, fed.clients_per_round"]),
    ({"fed": 3}, ["fed: no such field", "fed.rounds"]),
    (
      {"nope.x": 3},
      ["nope.x: no such field", "attack, backbone, data, eval, fed, optim, privacy, prompter"],
    ),
    ({"fed.rounds": "ten"}, ["fed.rounds: expected int", "'ten'"]),
    ({"fed.rounds": 2.5}, ["fed.rounds: expected int", "2.5"]),
    ({"prompter.local": 0}, ["prompter.local: expected bool", "got 0"]),
    ({"optim.balance": True}, ["optim.balance: expected float", "True"]),
    ({"prompter.fusion_weights": [1, 2]}, ["expected numbers, such as 0.5,0.5", "[1, 2]"]),
    ({"seed": 4}, ["seed: expected in the study's seeds"]),
  ],
)
def test_a_wrong_override_is_one_line_that_names_cell_field_and_choices(overrides, parts):
  line = complaint(variants={"full AFSPL": {}, "dense FedAvg": overrides})
  for part in ["'dense FedAvg' in 'iid'", *parts]:
    assert part in line


@pytest.mark.parametrize(
  "changes, parts",
  [
    ({"full": "AFSPL"}, ["expected full to be one of full AFSPL, dense FedAvg", "'AFSPL'"]),
    ({"reference": "none"}, ["expected reference to be one of", "'none'"]),
    ({"seeds": ()}, ["at least one seed"]),
    ({"seeds": (1, 1)}, ["each once", "(1, 1)"]),
    ({"settings": {}}, ["at least one setting"]),
    ({"alone": "none"}, ["expected alone to be one of full AFSPL, dense FedAvg", "'none'"]),
    ({"fewer_seeds": {"iid": (4,)}}, ["expected fewer_seeds", "(3, 5); got 'iid' with (4,)"]),
    ({"fewer_seeds": {"other": (3,)}}, ["['iid', 'skewed', ", "got 'other' with (3,)"]),
  ],
)
def test_a_study_that_cannot_be_tabulated_is_refused(changes, parts):
  line = complaint(**changes)
  for part in parts:
    assert part in line


@pytest.mark.parametrize("name", ["ablation.py", "uplink.py", "site_size.py"])
def test_every_variant_of_the_shipped_studies_differs_from_every_other(name):
  found = load_config(ROOT / "configs" / name, "get_study", Study)
  everything = [c for c in cells(found) if c.seed == found.seeds[0]]
  for setting in found.settings:
    runs = {c.variant: c.run for c in everything if c.setting == setting}
    same = [v for v in runs if list(runs.values()).count(runs[v]) > 1]
    assert same == []


def test_what_knows_no_sites_is_run_once_for_all_settings():
  found = load_config(ROOT / "configs" / "ablation.py", "get_study", Study)
  for variant in ("zero-shot", "centralised"):
    runs = {c.run for c in cells(found) if c.variant == variant}
    assert len(runs) == len(found.seeds_of("natural", variant))


def test_the_study_of_sizes_has_enough_seeds_and_only_legal_configs():
  found = load_config(ROOT / "configs" / "site_size.py", "get_study", Study)
  assert {(c.setting, c.variant) for c in cells(found)} == {
    (setting, variant) for setting in found.settings for variant in found.variants
  }
  for setting, overrides in found.settings.items():
    least = 3 if "data.partition" in overrides else 5
    assert all(len(found.seeds_of(setting, variant)) >= least for variant in found.variants)
  for cell in cells(found):
    validate(cell.config)
    assert (
      cell.config.fed.rounds + cell.config.fed.finetune == found.base.fed.rounds
    )  # as many steps
