from pathlib import Path

import pytest

from afspl_jax.config.fields import GROUPS, SETTINGS, agreed_names
from afspl_jax.config.reference import settings_markdown

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_of_settings_is_current():
  assert (DOCS / "config.md").read_text() == settings_markdown(), (
    "write it anew: python -m afspl_jax.config.reference > docs/config.md"
  )


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_says_what_it_is(name):
  rule = SETTINGS[name]
  assert 10 < len(rule.meaning) < 100 and not rule.meaning.endswith(".")
  assert f"| `{name}` |" in settings_markdown()


def test_every_group_says_what_it_is():
  assert all(meaning.endswith(".") for meaning in GROUPS.values())


def test_server_and_sites_compare_these_settings():
  whole = ("prompter", "optim", "uplink", "privacy", "secure")
  always = {
    "seed",
    "data.instruction_length",
    "data.target_length",
    "data.caption_instruction",
    "backbone.dtype",
    "fed.rounds",
    "fed.strategy",
    "fed.share",
    "fed.local_leaves",
    *(name for name in SETTINGS if name.split(".")[0] in whole),
  }
  split = (
    "source",
    "fields",
    "partition",
    "dirichlet_alpha",
    "categories",
    "capacity_ratio",
    "num_clients",
    "min_examples",
    "max_examples",
  )
  assert set(agreed_names("always")) == always
  assert agreed_names("split") == tuple(f"data.{name}" for name in split)
