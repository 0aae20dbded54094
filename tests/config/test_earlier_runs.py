"""Settings that a run of an earlier version stored."""

import copy

import pytest

from afspl_jax.config.experiment import Experiment, to_dict
from afspl_jax.config.fields import from_dict
from afspl_jax.errors import UserError


def test_a_run_from_before_prompts_of_sites_has_none():
  stored = to_dict(Experiment())
  assert from_dict(copy.deepcopy(stored)) == Experiment()
  stored["prompter"]["routing"] = "trained"  # a name of the keys that are trained
  assert from_dict(copy.deepcopy(stored)).prompter.routing == "none"
  del stored["prompter"]["routing"]
  assert from_dict(stored).prompter.routing == "none"


def test_a_run_whose_pool_had_the_keys_of_sites_is_refused_by_name():
  stored = to_dict(Experiment())
  stored["prompter"]["routing"] = "sites"
  assert from_dict(copy.deepcopy(stored)).prompter.routing == "sites"
  del stored["prompter"]["site_prompts"]
  with pytest.raises(UserError, match="expected a run with prompts of sites; got one from before"):
    from_dict(stored)
