"""Values that no experiment can have are refused by the name of their field."""

import dataclasses

import pytest
from flwr.app import Context, RecordDict

from afspl_jax import flower_app
from afspl_jax.config.experiment import Experiment, Privacy, Secure
from afspl_jax.config.fields import changed, known_fields
from afspl_jax.config.flags import Launch
from afspl_jax.errors import UserError
from afspl_jax.federation.transport.local_grid import LocalGrid
from afspl_jax.runs import hosts
from afspl_jax.runs.validate import check

AT_LEAST_1 = (
  "fed.clients_per_round",
  "fed.cohort",
  "fed.min_replies",
  "fed.max_examples",
  "eval.every",
  "eval.batch_size",
  "eval.max_tokens",
  "optim.batch_size",
  "optim.local_steps",
  "prompter.tokens",
  "prompter.key_dim",
  "prompter.fusion_hidden",
  "prompter.mapper_hidden",
  "prompter.patch_pool",
  "data.num_clients",
  "data.categories",
  "data.instruction_length",
  "data.target_length",
)
ABOVE_0 = (
  "fed.deadline",
  "prompter.temperature",
  "prompter.pool_mass",
  "data.dirichlet_alpha",
  "optim.prompt_lr",
  "optim.local_lr",
  "optim.key_lr",
  "optim.fusion_lr",
  "optim.mapper_lr",
  "optim.clip_norm",
  "optim.contrast_temperature",
  "attack.scale",
)
BELOW_1 = ("prompter.local_drop", "eval.ema", "attack.share")
NOT_NEGATIVE = (
  "optim.balance",
  "optim.contrast",
  "optim.contrast_warmup",
  "optim.weight_decay",
  "fed.wait",
  "fed.max_update_norm",
)
COUNTS = ("seed", "data.max_bad", "fed.rounds", "fed.newcomers", "fed.retries")
SHARES = ("uplink.energy", "uplink.ratio")
NAN, INF = float("nan"), float("inf")

REFUSED = [
  *((name, value, "expected at least 1") for name in AT_LEAST_1 for value in (0, -1)),
  *((n, v, "expected a finite number above 0") for n in ABOVE_0 for v in (0.0, -1.0, NAN, INF)),
  *((n, v, "expected a number from 0 to below 1") for n in BELOW_1 for v in (-0.1, 1.0, NAN)),
  *((name, value, "expected 0 or more") for name in NOT_NEGATIVE for value in (-0.1, NAN, INF)),
  *((name, -1, "expected 0 or more") for name in COUNTS),
  *(("data.capacity_ratio", value, "expected a finite number from 1") for value in (0.9, NAN, INF)),
  *((n, v, "expected a share above 0 and up to 1") for n in SHARES for v in (0.0, 1.1, NAN)),
  ("backbone.dtype", "float16", "expected one of float32, bfloat16"),
  ("fed.share", "some", "expected one of all, none"),
  ("uplink.select", "all", "expected one of energy, ratio, shared, dense"),
  ("attack.kind", "lie", "expected one of none, sign_flip, scale, label_flip"),
  ("uplink.weighing", "mean", "expected one of coverage, cohort"),
  ("fed.clients_per_round", 11, "expected at most data.num_clients without fed.newcomers, 10"),
]


def test_a_weight_whose_products_would_not_be_exact_is_refused():
  with pytest.raises(UserError, match=r"fed.max_examples: expected at most 536870912"):
    check(changed(Experiment(), {"fed.max_examples": 2**29 + 1}))


def test_what_cannot_be_averaged_has_no_method():
  with pytest.raises(UserError, match=r"fed.strategy: expected fedavg with fed.share=none"):
    check(changed(Experiment(), {"fed.share": "none", "fed.strategy": "fedprox"}))


def test_controls_need_a_dense_uplink():
  with pytest.raises(UserError, match=r"uplink.select: expected dense .*; got 'energy'") as error:
    check(changed(Experiment(), {"fed.strategy": "scaffold"}))
  assert "\n" not in str(error.value)
  check(changed(Experiment(), {"fed.strategy": "scaffold", "uplink.select": "dense"}))


@pytest.mark.parametrize("name, value, why", REFUSED)
def test_a_value_that_cannot_be_is_refused_by_its_field(name, value, why):
  with pytest.raises(UserError) as error:
    check(changed(Experiment(), {name: value}))
  assert str(error.value).startswith(f"{name}: {why}")
  assert str(error.value).endswith(f"; got {value!r}") and "\n" not in str(error.value)


def test_a_hostile_site_would_not_bound_what_it_sends():
  with pytest.raises(UserError, match=r"attack.kind: expected none .*; got 'scale'"):
    check(
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
  ],
)
def test_no_part_of_a_network_takes_part_in_a_study(study, tmp_path):
  config = changed(Experiment(), study)
  check(config)
  for role in ("server", "local-net", "client"):
    launch = Launch(config, tmp_path / "run", role, "its:1", insecure=True, site="aachen")
    start = hosts.join_federation if role == "client" else hosts.federate
    with pytest.raises(UserError, match=f"--role={role}: expected fed.newcomers=0, "):
      start(launch, say=lambda text: None)
  overrides = " ".join(f"{name}={value}" for name, value in study.items())
  run_config = {"config": "shapes.py", "overrides": overrides, "workdir": str(tmp_path / "run")}
  context = Context(1, 1, node_config={}, state=RecordDict(), run_config=run_config)
  with pytest.raises(UserError, match=r"flwr run: expected fed.newcomers=0, "):
    flower_app.server_app(LocalGrid(flower_app.client_app, 1), context)
  assert not list(tmp_path.iterdir())


def test_newcomers_do_not_count_among_those_who_are_selected():
  many = {"fed.clients_per_round": 9, "fed.newcomers": 2}
  with pytest.raises(UserError, match=r"fed.clients_per_round: .*, 8; got 9"):
    check(changed(Experiment(), many))
  check(changed(Experiment(), many | {"fed.clients_per_round": 8}))


@pytest.mark.parametrize(
  "name, value",
  [
    *((name, 1) for name in AT_LEAST_1),
    *((name, 0.0) for name in (*BELOW_1, *NOT_NEGATIVE)),
    *((name, 0) for name in COUNTS),
    *((name, 1.0) for name in (*SHARES, "data.capacity_ratio")),
  ],
)
def test_the_outermost_value_that_can_be_is_taken(name, value):
  fewer = {"fed.clients_per_round": 1} if name == "data.num_clients" else {}
  check(changed(Experiment(), {name: value} | fewer))


def test_every_number_of_an_experiment_is_checked_here_or_named_below():
  elsewhere = {
    "prompter.pool",  # prompts/pool.py: sizes that must fit each other
    "prompter.k_min",
    "prompter.k_max",
    "eval.min_tokens",  # decode.py: what texts can be generated with
    "eval.beams",
    "eval.length_penalty",
    "eval.no_repeat_ngram",
    "data.min_examples",  # 0 or less is no floor
    "eval.val_examples",  # 0 or less means all
    "eval.test_examples",
    "eval.common_examples",
    "optim.final_lr",  # any factor
    "optim.warmup_rounds",
    "optim.b1",
    "optim.b2",
    "optim.label_smoothing",
    *(f"privacy.{field.name}" for field in dataclasses.fields(Privacy)),  # federation/private.py
    *(f"secure.{field.name}" for field in dataclasses.fields(Secure)),  # federation/secure/
  }
  numbers = {name for name, value in known_fields(Experiment()) if type(value) in (int, float)}
  assert numbers - elsewhere == {name for name, value, _ in REFUSED if not isinstance(value, str)}
