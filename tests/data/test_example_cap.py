"""At most so many training examples of each client, as a partition and its manifest have it."""

import dataclasses
import json

import numpy as np
import pytest

from afspl_jax.config.experiment import Data, Experiment
from afspl_jax.config.fields import changed
from afspl_jax.data import manifest
from afspl_jax.data.example_cap import capped
from afspl_jax.data.partition import partition, save_partition
from afspl_jax.errors import UserError
from afspl_jax.runs.prepare import _partition as partition_of_host
from afspl_jax.runs.validate import validate
from tests.data.dealt import KINDS, as_lists, config, one, world

SPLITS = {"train": world(240), "validation": world(30), "test": world(30)}


def ids(clients) -> dict[str, set[str]]:
  return {name: {SPLITS["train"][i].id for i in rows} for name, rows in clients.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_cap_keeps_so_many_of_a_clients_examples_and_all_of_the_other_splits(kind):
  whole = partition(SPLITS, config(kind), 3)
  some = partition(SPLITS, config(kind, max_examples=9), 3)
  for name, rows in whole["train"].items():
    kept = some["train"][name].tolist()
    assert len(kept) == min(len(rows), 9) and set(kept) <= set(rows.tolist())
    assert kept == sorted(kept)
  for split in ("validation", "test"):
    assert as_lists(some[split]) == as_lists(whole[split])


def test_a_smaller_cap_gives_a_part_of_a_larger_one():
  parts = [ids(partition(SPLITS, config("natural", max_examples=n), 0)["train"]) for n in (8, 16)]
  for name, few in parts[0].items():
    assert len(few) == 8 and few < parts[1][name]


def test_the_seed_decides_and_chance_is_even():
  examples = world(400, one)
  everyone = {"site": np.arange(400)}
  draws = [capped(everyone, examples, Data(max_examples=100), seed)["site"] for seed in range(40)]
  assert draws[0].tolist() == capped(everyone, examples, Data(max_examples=100), 0)["site"].tolist()
  assert draws[0].tolist() != draws[1].tolist()
  counts = np.bincount(np.concatenate(draws), minlength=400)  # binomial: mean 10, deviation 2.74
  assert counts.mean() == 10 and counts.std() == pytest.approx(2.74, rel=0.2)


def test_neither_the_order_of_the_source_nor_other_examples_matter():
  examples = world(60, one)
  cap = Data(max_examples=20)
  first = capped({"site": np.arange(60)}, examples, cap, 5)["site"]
  turned = capped({"site": np.arange(60)}, examples[::-1], cap, 5)["site"]
  assert {examples[i].id for i in first} == {examples[::-1][i].id for i in turned}
  kept = capped({"site": first}, examples, cap, 5)["site"]  # what is kept is kept again
  assert kept.tolist() == first.tolist()


def test_no_cap_and_a_cap_that_is_not_reached_change_nothing():
  whole = partition(SPLITS, config("dirichlet"), 0)
  for cap in (0, 10_000):
    found = partition(SPLITS, config("dirichlet", max_examples=cap), 0)
    assert {s: as_lists(c) for s, c in found.items()} == {s: as_lists(c) for s, c in whole.items()}


def test_a_cap_below_the_floor_is_rejected_by_its_name():
  with pytest.raises(UserError) as error:
    partition(SPLITS, config("natural", min_examples=8, max_examples=7), 0)
  said = "data.max_examples: expected 0, or at least data.min_examples, 8; got 7"
  assert str(error.value) == said
  with pytest.raises(UserError) as error:
    validate(changed(Experiment(), {"data.max_examples": 7}))
  assert str(error.value) == said
  validate(changed(Experiment(), {"data.max_examples": 8}))


def test_the_manifest_says_what_each_client_trains_on_and_the_cap(tmp_path):
  data = config("natural", max_examples=9)
  clients = partition(SPLITS, data, 0)
  save_partition(tmp_path, SPLITS, clients, data, 0, {})
  found = json.loads((tmp_path / manifest.FILE).read_text())
  assert found["max_examples"] == 9
  held = {name: set(parts["train"]) for name, parts in found["clients"].items()}
  assert held == ids(clients["train"]) and {len(part) for part in held.values()} == {9}


def test_a_manifest_of_a_capped_run_gives_the_same_clients_and_a_smaller_cap_a_part(tmp_path):
  data = config("natural", max_examples=16)
  clients = partition(SPLITS, data, 0)
  save_partition(tmp_path, SPLITS, clients, data, 0, {})
  again = dataclasses.replace(data, partition=f"manifest:{tmp_path / manifest.FILE}")
  found = partition(SPLITS, again, 0)
  assert {s: as_lists(c) for s, c in found.items()} == {s: as_lists(c) for s, c in clients.items()}
  fewer = partition(SPLITS, dataclasses.replace(again, max_examples=8), 0)["train"]
  straight = partition(SPLITS, config("natural", max_examples=8), 0)["train"]
  assert as_lists(fewer) == as_lists(straight)
  with pytest.raises(UserError, match=r"every example of train; .* data.max_examples, set that"):
    partition(SPLITS, dataclasses.replace(again, max_examples=0), 0)


def test_a_site_with_data_of_its_own_is_capped_too():
  experiment = Experiment(data=Data(max_examples=32))
  found = partition_of_host(experiment, {"train": SPLITS["train"]}, "aachen")
  assert list(found) == ["train"] and list(found["train"]) == ["aachen"]
  rows = found["train"]["aachen"]
  assert len(rows) == 32
  half = changed(experiment, {"data.max_examples": 16})
  assert set(partition_of_host(half, SPLITS, "aachen")["train"]["aachen"]) < set(rows)
  assert len(partition_of_host(half, SPLITS, "aachen")["test"]["aachen"]) == len(SPLITS["test"])
