"""Settings without a masked sum, or with one that reveals too much, are rejected."""

import pytest

from afspl_jax.config.experiment import Experiment
from afspl_jax.config.fields import changed
from afspl_jax.errors import UserError
from afspl_jax.federation.secure.terms import terms_of
from afspl_jax.runs.validate import validate

SECURE = {"secure.aggregation": True, "uplink.select": "shared"}
CENTRAL = {"privacy.dp": "central", "privacy.noise": 1.0}


def experiment(**more):
  return changed(Experiment(), SECURE | more)


@pytest.mark.parametrize(
  ("name", "value", "why"),
  [
    ("secure.threshold", 0.5, "above 0.5 and below 1"),
    ("secure.threshold", 1.0, "and below 1"),
    ("secure.threshold", float("nan"), "above 0.5"),
    ("secure.neighbours", 1, "0, or at least 2 and less than the number of clients, 10"),
    ("secure.neighbours", 10, "0, or at least 2"),
    ("secure.bits", 7, "at least 8 and at most 32"),
    ("secure.bits", 33, "at least 8 and at most 32"),
    ("fed.clients_per_round", 2, "at least 3 with secure.aggregation"),
    ("uplink.select", "energy", "shared or dense with secure.aggregation"),
    ("uplink.select", "ratio", "shared or dense with secure.aggregation"),
    ("fed.strategy", "median", "needs only the mean of the updates"),
    ("fed.strategy", "qfedavg", "needs only the mean of the updates"),
    ("fed.selection", "size", "uniform, round_robin or poisson"),
    ("fed.selection", "power_of_choice", "uniform, round_robin or poisson"),
    ("fed.share", "none", "all with secure.aggregation"),
    ("fed.max_update_norm", 3.0, "0 with secure.aggregation"),
  ],
)
def test_a_setting_without_a_sum_under_masks_is_rejected_by_its_field(name, value, why):
  with pytest.raises(UserError) as error:
    validate(experiment(**{name: value}))
  assert str(error.value).startswith(f"{name}: expected ") and why in str(error.value)
  assert str(error.value).endswith(f"; got {value!r}")


def test_sums_that_would_not_be_exact_are_rejected_before_anything_is_loaded():
  with pytest.raises(UserError, match=r"up to 2\*\*53; got .* fed.max_examples"):
    validate(experiment(**{"secure.bits": 32}))
  validate(experiment(**{"secure.bits": 32, "fed.max_examples": 1000}))


def test_noise_of_every_client_has_no_bound_that_it_could_be_sent_in():
  local = CENTRAL | {"privacy.dp": "local"}
  with pytest.raises(UserError, match=r"privacy.dp: expected none or central .*; got 'local'"):
    validate(experiment(**local))


def test_coins_may_not_draw_fewer_than_have_a_sum():
  poisson = {"fed.selection": "poisson", "fed.clients_per_round": 4}
  with pytest.raises(UserError, match=r"fed.clients_per_round: .* has no sum"):
    validate(experiment(**CENTRAL, **poisson))
  many = {"fed.selection": "poisson", "data.num_clients": 100, "fed.clients_per_round": 50}
  validate(experiment(**CENTRAL, **many))


def test_weights_and_how_often_the_bound_bites_are_in_the_sum_unless_privacy_forbids():
  validate(experiment(**CENTRAL))
  plain, private = terms_of(experiment()), terms_of(experiment(**CENTRAL))
  assert plain.weighted and plain.counts == ("within_clip",)
  assert not private.weighted and private.counts == ()
  adaptive = terms_of(experiment(**CENTRAL, **{"privacy.clipping": "adaptive"}))
  assert adaptive.counts == ("within_clip",)
  assert terms_of(Experiment()) is None
