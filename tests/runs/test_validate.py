"""Values that no experiment can have are refused by the name of their field."""

import pytest
from flwr.app import Context, RecordDict

from afspl_jax import flower_app
from afspl_jax.config.experiment import Experiment
from afspl_jax.config.fields import SETTINGS, changed, check_values, known_fields
from afspl_jax.config.flags import Launch
from afspl_jax.errors import UserError
from afspl_jax.federation.contracts import POISSON
from afspl_jax.federation.server import selection
from afspl_jax.federation.transport.local_grid import LocalGrid
from afspl_jax.runs import hosts
from afspl_jax.runs.validate import RULES, validate

NAN, INF = float("nan"), float("inf")

# Any number is legal: 0 or less means all or none, and other modules know what fits.
UNBOUNDED = {
  "data.min_examples",
  "eval.val_examples",
  "eval.test_examples",
  "eval.common_examples",
}
DEFAULTS = dict(known_fields(Experiment()))
BOUNDED = {n: rule for n, rule in SETTINGS.items() if type(DEFAULTS[n]) in (int, float)}


def outside(name: str) -> list:
  """Values just beyond a field's bounds, and those that no float field takes."""
  rule, kind = BOUNDED[name], type(DEFAULTS[name])
  step = 1 if kind is int else 1e-3
  beyond = [rule.gt, rule.lt]
  beyond += [None if rule.ge is None else rule.ge - step]
  beyond += [None if rule.le is None else rule.le + step]
  values = [kind(value) for value in beyond if value is not None]
  return values + ([NAN, INF, -INF] if kind is float else [])


REJECTED = [
  *(
    (name, value, SETTINGS[name].legal(DEFAULTS[name]))
    for name in BOUNDED
    for value in outside(name)
  ),
  ("optim.local_steps", 0, "at least 1"),
  ("optim.prompt_lr", 0.0, "a finite number, above 0"),
  ("prompter.local_drop", 1.0, "a finite number, at least 0 and below 1"),
  ("fed.wait", -0.1, "a finite number, at least 0"),
  ("seed", -1, "at least 0"),
  ("data.capacity_ratio", 0.9, "a finite number, at least 1"),
  ("uplink.energy", 1.1, "a finite number, above 0 and at most 1"),
  ("backbone.dtype", "float16", "one of float32, bfloat16"),
  ("fed.share", "some", "one of all, none"),
  ("fed.compare", "all", "one of none, alone, pooled, both"),
  ("uplink.select", "all", "one of energy, ratio, shared, dense"),
  ("attack.kind", "lie", "one of none, sign_flip, scale, label_flip"),
  ("uplink.weighing", "mean", "one of coverage, cohort"),
  ("fed.selection", "dice", "one of uniform, size, round_robin, power_of_choice, poisson"),
  ("optim.schedule", "linear", "one of constant, cosine"),
  ("prompter.mapper", "pooled", "one of linear, mlp, adapter:N, pooled:N"),
  ("prompter.pool_mode", "sparse", "one of adaptive, fixed, dense"),
  ("prompter.routing", "site", "one of auto, none, sites"),
  ("prompter.fusion", "mean", "one of static, learned, dynamic"),
  ("prompter.init", "zeros", "one of random, vocabulary, text"),
  ("prompter.fusion_weights", (0.5, -1.0), "finite numbers, at least 0"),
  ("fed.clients_per_round", 11, "at most data.num_clients without fed.newcomers, 10"),
]


def test_a_weight_whose_products_would_not_be_exact_is_refused():
  with pytest.raises(UserError, match=r"fed.max_examples: expected .* at most 536870912;"):
    validate(changed(Experiment(), {"fed.max_examples": 2**29 + 1}))


def test_what_cannot_be_averaged_has_no_method():
  with pytest.raises(UserError, match=r"fed.strategy: expected fedavg with fed.share=none"):
    validate(changed(Experiment(), {"fed.share": "none", "fed.strategy": "fedprox"}))


@pytest.mark.parametrize(
  "others",
  [
    {"fed.share": "none"},
    {"fed.strategy": "scaffold", "uplink.select": "dense"},
    {"privacy.example_clip": 1.0, "optim.balance": 0.0, "optim.contrast": 0.0},
  ],
)
def test_fine_tuning_needs_a_shared_model_and_steps_without_controls_and_budget(others):
  validate(changed(Experiment(), others))
  with pytest.raises(UserError, match=r"fed.finetune: expected 0 with .*; got 2"):
    validate(changed(Experiment(), others | {"fed.finetune": 2}))


@pytest.mark.parametrize(
  "others", [{"fed.share": "none"}, {"privacy.example_clip": 1.0, "optim.balance": 0.0}]
)
def test_baselines_need_a_federation_without_the_noise_of_examples(others):
  validate(changed(Experiment(), others))
  with pytest.raises(UserError, match=r"fed.compare: expected none with .*; got 'both'"):
    validate(changed(Experiment(), others | {"fed.compare": "both"}))


def test_controls_need_a_dense_uplink():
  with pytest.raises(UserError, match=r"uplink.select: expected dense .*; got 'energy'") as error:
    validate(changed(Experiment(), {"fed.strategy": "scaffold"}))
  assert "\n" not in str(error.value)
  validate(changed(Experiment(), {"fed.strategy": "scaffold", "uplink.select": "dense"}))


@pytest.mark.parametrize("name, value, expected", REJECTED)
def test_a_value_that_is_not_legal_is_rejected_by_its_field(name, value, expected):
  with pytest.raises(UserError) as error:
    validate(changed(Experiment(), {name: value}))
  assert str(error.value) == f"{name}: expected {expected}; got {value!r}"


def test_a_hostile_site_would_not_bound_what_it_sends():
  with pytest.raises(UserError, match=r"attack.kind: expected none .*; got 'scale'"):
    validate(
      changed(
        Experiment(), {"attack.kind": "scale", "attack.share": 0.2, "secure.aggregation": True}
      )
    )


@pytest.mark.parametrize(
  "study",
  [
    {"attack.kind": "scale", "attack.share": 0.2},
    {"fed.newcomers": 1, "fed.clients_per_round": 9},
    {"fed.share": "none"},
    {"fed.finetune": 1},
  ],
)
def test_no_part_of_a_network_takes_part_in_a_study(study, tmp_path):
  config = changed(Experiment(), study)
  validate(config)
  for role in ("server", "local-net", "client"):
    launch = Launch(config, tmp_path / "run", role, "its:1", insecure=True, site="aachen")
    start = hosts.join_federation if role == "client" else hosts.federate
    with pytest.raises(
      UserError, match=f"--role={role}: expected fed.newcomers=0, fed.finetune=0, "
    ):
      start(launch, notify=lambda text: None)
  overrides = " ".join(f"{name}={value}" for name, value in study.items())
  run_config = {"config": "shapes.py", "overrides": overrides, "workdir": str(tmp_path / "run")}
  context = Context(1, 1, node_config={}, state=RecordDict(), run_config=run_config)
  with pytest.raises(UserError, match=r"flwr run: expected fed.newcomers=0, fed.finetune=0, "):
    flower_app.server_app(LocalGrid(flower_app.client_app, 1), context)
  assert not list(tmp_path.iterdir())


def test_newcomers_do_not_count_among_those_who_are_selected():
  many = {"fed.clients_per_round": 9, "fed.newcomers": 2}
  with pytest.raises(UserError, match=r"fed.clients_per_round: .*, 8; got 9"):
    validate(changed(Experiment(), many))
  validate(changed(Experiment(), many | {"fed.clients_per_round": 8}))


@pytest.mark.parametrize(
  "field, other",
  [
    ("privacy.dp", {"privacy.dp": "central", "privacy.noise": 1.0, "uplink.select": "dense"}),
    ("privacy.example_clip", {"privacy.example_clip": 0.5, "optim.balance": 0.0}),
    ("secure.aggregation", {"secure.aggregation": True, "uplink.select": "dense"}),
    ("fed.share", {"fed.share": "none"}),
    ("prompter.see_image", {"prompter.see_image": False}),
  ],
)
def test_where_sites_send_statistics_of_images_nothing_hides_them(field, other):
  validate(changed(Experiment(), other))
  with pytest.raises(UserError, match=f"{field}: expected .* with prompter.routing=sites.*; got "):
    validate(changed(Experiment(), other | {"prompter.routing": "sites"}))
  validate(changed(Experiment(), {"prompter.routing": "sites"}))


def inside(name: str) -> list:
  """The outermost legal values of a field, where these are legal."""
  return [type(DEFAULTS[name])(v) for v in (BOUNDED[name].ge, BOUNDED[name].le) if v is not None]


@pytest.mark.parametrize("name, value", [(n, v) for n in BOUNDED for v in inside(n)])
def test_the_outermost_legal_value_is_accepted(name, value):
  check_values(changed(Experiment(), {name: value}))


@pytest.mark.parametrize(
  "name, value",
  [
    *((name, 1) for name in ("fed.clients_per_round", "fed.cohort", "optim.batch_size")),
    *((name, 0.0) for name in ("prompter.local_drop", "eval.ema", "fed.wait", "optim.contrast")),
    *((name, 0) for name in ("seed", "data.max_bad", "fed.rounds", "fed.retries")),
    *((name, 1.0) for name in ("uplink.energy", "uplink.ratio", "data.capacity_ratio")),
    ("prompter.mapper", "pooled:4"),
    ("fed.max_examples", 2**29),
  ],
)
def test_a_legal_value_fits_the_other_defaults(name, value):
  validate(changed(Experiment(), {name: value}))


def test_every_number_has_a_bound_or_is_named_here():
  free = {n for n, r in BOUNDED.items() if (r.ge, r.gt, r.le, r.lt) == (None,) * 4}
  assert {n for n in free if type(DEFAULTS[n]) is int} == UNBOUNDED
  assert {n for n in free if type(DEFAULTS[n]) is float} == {"eval.length_penalty"}


def test_every_rule_of_several_settings_names_a_field():
  assert len(RULES) > 25 and {rule.field for rule in RULES} <= SETTINGS.keys()


def test_the_choices_of_selection_are_those_that_there_are():
  assert SETTINGS["fed.selection"].choices == (*selection.METHODS, POISSON)
