import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afspl_jax.config.nested_values import digest
from afspl_jax.data import partition as module
from afspl_jax.data.partition import check_split_images, partition
from afspl_jax.errors import UserError
from afspl_jax.types import Example
from tests.data.dealt import (
  KINDS,
  SITES,
  as_lists,
  config,
  one,
  owners,
  shares,
  skew,
  train_parts,
  world,
)


@settings(max_examples=40, deadline=None, database=None)
@given(
  kind=st.sampled_from(KINDS),
  counts=st.lists(st.integers(1, 4), min_size=30, max_size=60),
  others=st.lists(st.integers(1, 4), max_size=20),
  seed=st.integers(0, 2**32),
)
def test_every_example_and_every_image_goes_to_one_client(kind, counts, others, seed):
  splits = {
    "train": world(len(counts), lambda i: counts[i]),
    "validation": [],
    "test": world(len(others), lambda i: others[i]),
  }
  parts = partition(splits, config(kind), seed)
  assert list(parts) == list(splits)
  for split, clients in parts.items():
    examples = splits[split]
    assert sorted(np.concatenate(list(clients.values()))) == list(range(len(examples)))
    assert all(len(names) == 1 for names in owners(examples, clients).values())
    assert list(clients) == list(parts["train"]) and len(clients) == 3
    assert all(indices.dtype == int for indices in clients.values())
  assert all(len(indices) >= 1 for indices in parts["train"].values())


def test_in_the_natural_partition_every_site_is_a_client():
  splits = {"train": world(30), "test": world(2)}
  for split, clients in partition(splits, config("natural"), seed=0).items():
    assert list(clients) == list(SITES)
    for site, indices in clients.items():
      assert {splits[split][i].site for i in indices} <= {site}


def test_a_number_of_clients_other_than_that_of_sites_is_an_error():
  with pytest.raises(UserError, match=r"data.num_clients: expected 3, .*natural.*; got 5"):
    train_parts(world(30), config("natural", num_clients=5), seed=0)


def test_sites_that_train_lacks_are_named():
  train = [example for example in world(30) if example.site == "beech"]
  splits = {"train": train, "validation": train, "test": world(6)}
  with pytest.raises(UserError, match=r"data.partition: .*; test also has ash, cherry\. Use"):
    partition(splits, config("natural", num_clients=1), seed=0)


def test_iid_clients_have_equally_many_images_of_every_split():
  splits = {"train": world(32), "test": world(11)}
  parts = partition(splits, config("iid", num_clients=5), seed=0)
  images = {
    split: sorted(len({splits[split][i].image for i in indices}) for indices in clients.values())
    for split, clients in parts.items()
  }
  assert images == {"train": [6, 6, 6, 7, 7], "test": [2, 2, 2, 2, 3]}


def test_a_small_alpha_skews_more_than_a_large_one_and_iid_least():
  examples = world(600, per_image=one)

  def measured(kind, alpha):
    values = config(kind, dirichlet_alpha=alpha, num_clients=5)
    return np.mean([skew(examples, train_parts(examples, values, seed)) for seed in range(3)])

  small, large, none = (
    measured(*c) for c in [("dirichlet", 0.1), ("dirichlet", 10.0), ("iid", 1.0)]
  )
  assert small > 2 * large > 0
  assert small > 0.4 and none < 0.1


@pytest.mark.parametrize("seed", range(3))
def test_a_dirichlet_client_tests_on_what_it_trains_on(seed):
  splits = {"train": world(6000, one), "validation": world(600, one), "test": world(3000, one)}
  values = config("dirichlet", dirichlet_alpha=0.3, num_clients=5)
  parts = partition(splits, values, seed)
  assert skew(splits["train"], parts["train"]) > 0.2  # clients do differ
  for split in ("validation", "test"):
    scale = len(splits["train"]) / len(splits[split])
    for name, indices in parts["train"].items():
      expected = shares(splits["train"], indices) * len(indices) / scale
      own = shares(splits[split], parts[split][name]) * len(parts[split][name])
      assert abs(own - expected).max() <= 2  # images of a category, of 150 or 750


def test_small_categories_match_their_shares_on_average():
  splits = {"train": world(600, one, categories=2), "test": world(1, one)}
  values = config("dirichlet", dirichlet_alpha=1.0, num_clients=4)
  expected, got = np.zeros(4), np.zeros(4)
  for seed in range(400):
    parts = partition(splits, values, seed)
    train = parts["train"].values()
    expected += [
      sum(splits["train"][i].labels == ("0",) for i in indices) / 300 for indices in train
    ]
    got += [len(indices) for indices in parts["test"].values()]
  assert abs(got - expected).max() < 4 * np.sqrt(400 * 3 / 16)


def test_a_category_that_train_lacks_is_assigned_evenly():
  new = [Example(f"{i}", f"image{i}", ("x",), labels=("new",)) for i in range(99)]
  values = config("dirichlet", dirichlet_alpha=0.1)
  parts = partition({"train": world(300), "test": new}, values, seed=0)
  assert [len(indices) for indices in parts["test"].values()] == [33, 33, 33]
  owned = set()
  for seed in range(30):
    clients = partition({"train": world(300), "test": new[:1]}, values, seed)["test"]
    owned |= {name for name, indices in clients.items() if len(indices)}
  assert len(owned) == 3


@pytest.mark.parametrize("num_clients, captioning", [(2, 1), (5, 3), (6, 3)])
def test_task_clients_have_only_captions_or_only_questions(num_clients, captioning):
  splits = {"train": world(60), "test": world(30)}
  parts = partition(splits, config("task", num_clients=num_clients), seed=0)
  for split, clients in parts.items():
    asked = [{bool(splits[split][i].question) for i in part} for part in clients.values()]
    assert asked == [{False}] * captioning + [{True}] * (num_clients - captioning)


def test_an_image_with_captions_and_questions_goes_to_either_task():
  both = [
    Example(f"{i}-{q}", f"image{i}", ("x",), question=q) for i in range(40) for q in ("", "?")
  ]
  clients = train_parts(both, config("task", num_clients=4), seed=0)
  assert [len(indices) for indices in clients.values()] == [20, 20, 20, 20]
  assert all(len(names) == 1 for names in owners(both, clients).values())


@pytest.mark.parametrize("asked, side", [(True, "captions"), (False, "questions")])
def test_a_task_partition_without_one_side_is_named(asked, side):
  examples = [example for example in world(30) if bool(example.question) == asked]
  with pytest.raises(
    UserError, match=rf"data.partition: .*task .*train has none with {side}\. Use"
  ):
    train_parts(examples, config("task"), seed=0)


def test_a_task_partition_needs_two_clients():
  with pytest.raises(UserError, match=r"data.num_clients: expected at least 2 .*task.*; got 1"):
    train_parts(world(30), config("task", num_clients=1), seed=0)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_seed_determines_the_partition(kind):
  splits = {"train": world(60), "test": world(40)}
  first, again, other = (partition(splits, config(kind), seed) for seed in (3, 3, 4))
  for split in splits:
    assert as_lists(first[split]) == as_lists(again[split])
    assert as_lists(first[split]) != as_lists(other[split])


@pytest.mark.parametrize("kind", KINDS)
def test_the_partition_of_a_split_does_not_depend_on_other_splits(kind):
  splits = {"train": world(60), "validation": world(20), "test": world(40)}
  everything = partition(splits, config(kind), seed=0)
  less = partition({"test": splits["test"], "train": splits["train"]}, config(kind), seed=0)
  for split, clients in less.items():
    assert as_lists(clients) == as_lists(everything[split])


@pytest.mark.parametrize("seed", [0, 1, module._TAG, 2**40 + 3, (1 << 32) + module._TAG])
def test_random_streams_differ_from_those_of_training(seed):
  def first(rng):
    return tuple(rng.integers(2**63, size=4))

  ours = {first(module._stream(seed, name)) for name in ("train", "test", "shares")}
  training = {
    first(np.random.default_rng((seed, round, client)))
    for round in [*range(40), seed]
    for client in range(40)
  }
  assert len(ours) == 3 and not ours & training


def test_dirichlet_draws_again_until_every_client_reaches_the_floor():
  examples = world(100, per_image=one)
  values = config("dirichlet", dirichlet_alpha=0.3, num_clients=4)
  first = [min(map(len, train_parts(examples, values, seed).values())) for seed in range(20)]
  assert min(first) < 8  # the floor does bind
  values.min_examples = 8
  for seed in range(20):
    assert min(map(len, train_parts(examples, values, seed).values())) >= 8


@pytest.mark.parametrize("kind", KINDS)
def test_only_train_has_a_floor(kind):
  floor = config(kind, min_examples=8, capacity_ratio=2.0)
  parts = partition({"train": world(60), "test": world(1)}, floor, seed=0)
  assert sorted(map(len, parts["test"].values())) == [0, 0, 1]


@pytest.mark.parametrize(
  "kind, values, client, count",
  [
    ("natural", {"min_examples": 11}, "ash", 10),
    ("iid", {"num_clients": 7, "min_examples": 5}, "client000[2-6]", 4),
    ("dirichlet", {"num_clients": 3, "min_examples": 11}, "client000[0-2]", r"\d"),
    ("task", {"num_clients": 3, "min_examples": 8}, "client0001", 7),
    ("quantity", {"num_clients": 3, "min_examples": 11}, "client000[0-2]", r"\d"),
    ("capacity", {"num_clients": 3, "min_examples": 4}, "client000[0-2]", "[23]"),
    ("pathological", {"num_clients": 3, "min_examples": 11}, "client000[0-2]", r"\d"),
  ],
)
def test_a_floor_that_cannot_be_reached_names_the_client_and_its_count(kind, values, client, count):
  examples = world(30, per_image=one)
  with pytest.raises(UserError) as error:
    train_parts(examples, config(kind, **values), seed=0)
  floor = values["min_examples"]
  assert error.match(
    rf"data.min_examples: expected at least {floor} .*{client} would get {count}\. Use fewer"
  )
  assert "\n" not in str(error.value)


def test_an_unknown_partition_is_named():
  with pytest.raises(UserError, match=r"data.partition: expected one of capacity, dirichlet, iid"):
    train_parts(world(9), config("by_hand"), seed=0)


@pytest.mark.parametrize(
  "kind, expected",
  [
    ("natural", "8ea74cab95d098dc"),
    ("iid", "ea66ab7d80a2760e"),
    ("dirichlet", "0118bc7ddae286ca"),
    ("task", "df058530878d6fd8"),
  ],
)
def test_partitions_equal_those_of_the_published_results(kind, expected):
  splits = {"train": world(300), "test": world(50)}
  parts = partition(splits, config(kind, dirichlet_alpha=0.3), seed=7)
  assert digest({split: as_lists(clients) for split, clients in parts.items()}) == expected


def test_an_image_in_two_splits_is_named():
  test = [example for example in world(9) if example.image in ("image5", "image7")]
  check_split_images({"train": world(5), "validation": [], "test": test})
  with pytest.raises(UserError, match=r"'image5' is in train and test \(1 such images\)\. Remove"):
    check_split_images({"train": world(7), "validation": [], "test": test})


# Sizes
