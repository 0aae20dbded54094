"""Plugins of third parties, found by entry point."""

import sys
from importlib.metadata import EntryPoint, EntryPoints

import numpy as np
import pytest

from afspl_jax.config import registry
from afspl_jax.config.experiment import Data, Experiment
from afspl_jax.config.fields import changed
from afspl_jax.data import partitions, sources
from afspl_jax.data.bad_records import BadRecords
from afspl_jax.errors import SettingError, UserError
from afspl_jax.federation import strategies
from afspl_jax.runs.validate import validate

STRATEGY = """
from dataclasses import dataclass
from afspl_jax.federation.strategies.fedavg import create as FedAvg

@dataclass(frozen=True)
class Mine(FedAvg):
  pull: float = 0.5

create = Mine
"""
SOURCE = """
def open_splits(splits, data, faults):
  return {}
"""
PARTITION = """
REDRAWN = False
def clients(splits, data):
  return ["only"]
def assign(train, names, data, rng):
  return lambda examples, rng: {example.image: names[0] for example in examples}
"""


@pytest.fixture
def third_party(tmp_path, monkeypatch):
  """An installed package that registers a plugin of each kind, and one that does not import."""
  package = tmp_path / "third_party"
  package.mkdir()
  (package / "__init__.py").touch()
  for name, text in {"method": STRATEGY, "scans": SOURCE, "one": PARTITION}.items():
    (package / f"{name}.py").write_text(text)
  (package / "broken.py").write_text("import no_such_library")
  monkeypatch.syspath_prepend(tmp_path)
  registered = EntryPoints(
    EntryPoint(name, f"third_party.{module}", group)
    for name, module, group in (
      ("mine", "method", "afspl_jax.strategies"),
      ("fedavg", "broken", "afspl_jax.strategies"),
      ("broken", "broken", "afspl_jax.strategies"),
      ("scans", "scans", "afspl_jax.sources"),
      ("one", "one", "afspl_jax.partitions"),
    )
  )
  monkeypatch.setattr(registry, "entry_points", lambda **wanted: registered.select(**wanted))
  yield
  for name in [name for name in sys.modules if name.startswith("third_party")]:
    del sys.modules[name]


def test_a_strategy_is_used_by_its_name_and_options(third_party):
  assert (
    strategies.get_strategy("mine:pull=0.25").pull == 0.25
    and "mine" in strategies.known_strategies()
  )
  validate(changed(Experiment(), {"fed.strategy": "mine:pull=1"}))


def test_a_source_and_a_partition_are_used_by_their_names(third_party):
  assert sources.open_splits(["train"], Data(source="scans"), BadRecords(0)) == {}
  assert "scans" in sources.known_sources()
  assert partitions.get_partitioner("one").clients({}, Data()) == ["only"]
  deal = partitions.get_partitioner("one").assign([], ["only"], Data(), np.random.default_rng(0))
  assert deal([], np.random.default_rng(0)) == {}


def test_a_built_in_plugin_wins_over_an_entry_point_of_its_name(third_party):
  assert (
    type(strategies.get_strategy("fedavg")).__module__ == "afspl_jax.federation.strategies.fedavg"
  )
  assert strategies.known_strategies().count("fedavg") == 1


def test_a_plugin_that_does_not_import_is_one_clear_message(third_party):
  with pytest.raises(UserError, match=r"^fed.strategy=broken: .*no_such_library"):
    strategies.get_strategy("broken")


def test_an_unknown_name_lists_those_of_third_parties(third_party):
  for get, name in ((strategies.get_strategy, "mine"), (partitions.get_partitioner, "one")):
    with pytest.raises(SettingError, match=rf"expected one of .*{name}.*; got 'nope'"):
      get("nope")


def test_names_are_listed_without_importing_their_package():
  assert registry.Registry("x", "afspl_jax.data.sources", "none").built_in() == (
    registry.SOURCES.built_in()
  )
  assert "_deals" not in registry.PARTITIONS.built_in()
