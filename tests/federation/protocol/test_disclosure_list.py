"""The allow-list: the docs show it, and it is shorter with privacy."""

from pathlib import Path

import pytest

from afspl_jax.config.experiment import Experiment
from afspl_jax.config.fields import changed
from afspl_jax.federation.contracts import WITHIN, PartyError, SiteError, SiteSpent
from afspl_jax.federation.protocol import disclosure_list, logged_values, wire
from afspl_jax.federation.protocol.image_statistics import STATISTICS

DOCS = Path(__file__).parents[3] / "docs" / "audit.md"


def names(**fields) -> set[str]:
  config = changed(Experiment(), {name.replace("__", "."): v for name, v in fields.items()})
  return {" ".join(where) for where in disclosure_list.allow_list(config)}


def test_the_docs_show_the_list():
  assert disclosure_list.allow_list_markdown() in DOCS.read_text(encoding="utf-8")


def test_every_entry_has_a_form_a_content_and_a_purpose():
  for entry in disclosure_list.ENTRIES:
    assert entry.form in logged_values.FORMS and entry.content and entry.purpose
  assert {entry.form for entry in disclosure_list.ENTRIES} == logged_values.FORMS.keys()


def test_names_are_those_of_the_code():
  assert (disclosure_list.HELLO, disclosure_list.TRAIN, disclosure_list.FLAT) == (
    wire.HELLO,
    wire.TRAIN,
    wire.FLAT,
  )
  assert disclosure_list.STATISTICS == STATISTICS
  assert any(entry.name == WITHIN for entry in disclosure_list.ENTRIES)
  kinds = (wire.WireError, SiteError, SiteSpent, PartyError, FloatingPointError)
  assert set(disclosure_list.ERROR_TYPES) == {kind.__name__ for kind in kinds}


HELLO = {"query.hello config site", "query.hello config num-examples"}
WEIGHT = {"train metrics num-examples", "train config structure"}
PLAIN = {"train arrays flat", "train arrays rows"}
SECURE = {
  "query.secure_keys secure keys",
  "query.secure_keys secure identity",
  "query.secure_keys secure signature",
  "query.secure_confirm secure signature",
  "query.secure_shares secure sealed",
  "query.secure_unmask secure shares",
  "train secure signature",
  "train arrays masked",
  "train config structure",
}


@pytest.mark.parametrize(
  "fields, expected",
  [
    ({"privacy__dp": "central"}, HELLO | WEIGHT | PLAIN),
    ({"privacy__dp": "local", "uplink__select": "dense"}, HELLO | WEIGHT | {"train arrays flat"}),
    (
      {"privacy__dp": "central", "privacy__clipping": "adaptive"},
      HELLO | WEIGHT | PLAIN | {"train metrics within_clip"},
    ),
    ({"privacy__example_clip": 0.5}, HELLO | WEIGHT | PLAIN),
    ({"secure__aggregation": True, "privacy__dp": "central"}, HELLO | SECURE),
    ({"secure__aggregation": True, "privacy__clipping": "adaptive"}, HELLO | SECURE),
  ],
)
def test_with_privacy_or_secure_aggregation_less_leaves(fields, expected):
  assert names(**fields) == expected
  assert len(expected) < len(names())


def test_statistics_of_images_leave_only_where_keys_come_from_them():
  open_, closed = {"prompter__routing": "sites"}, {"prompter__routing": "none"}
  assert names(**open_) == names()
  more = names(**open_) - names(**closed)
  assert more == {
    "query.statistics config num-examples",
    "query.statistics statistics mean",
    "query.statistics statistics covariance",
  }
  dense = {"uplink__select": "dense"}
  assert names(**open_, **dense) - names(**closed, **dense) == more | {"train arrays rows"}


@pytest.mark.parametrize("form, size", [("mean", 6), ("covariance", 21)])
def test_statistics_have_the_size_of_the_joint_features(form, size):
  line = {"leaves": [{"name": "sites/query/kernel", "rows": 6, "width": 4}]}
  fits = logged_values.FORMS[form].fits
  for number in (size - 1, size, size + 1):
    value = {"dtype": "float32", "shape": [number], "bytes": 128 + 4 * number}
    assert fits(value, line, "statistics") == (number == size)
  value = {"dtype": "float64", "shape": [size], "bytes": 128 + 8 * size}
  assert not fits(value, line, "statistics") and not fits(0.5, line, "statistics")


def test_a_control_leaves_with_scaffold_alone_and_as_many_usages_as_there_are_prompts():
  assert "train control flat" in names(fed__strategy="scaffold:server_lr=0.5")
  assert "train control flat" not in names()
  usages = [name for name in names(prompter__pool=3, prompter__k_max=2) if "pool_usage" in name]
  assert sorted(usages) == [f"train metrics pool_usage_{i}" for i in range(3)]
