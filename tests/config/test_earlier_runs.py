"""Settings that a run of an earlier version stored."""

import copy

from afspl_jax.config.experiment import Experiment, to_dict
from afspl_jax.config.fields import from_dict


def test_a_run_from_before_prompts_of_sites_has_none():
  stored = to_dict(Experiment())
  assert from_dict(copy.deepcopy(stored)) == Experiment()
  stored["prompter"]["routing"] = "trained"  # a name of the keys that are trained
  assert from_dict(copy.deepcopy(stored)).prompter.routing == "none"
  del stored["prompter"]["routing"]
  assert from_dict(stored).prompter.routing == "none"
