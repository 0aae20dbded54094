from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afspl_jax.config import Data, digest
from afspl_jax.data import partition as module
from afspl_jax.data.partition import capacities, check_images, partition
from afspl_jax.data.partitions import dirichlet
from afspl_jax.errors import UserError
from afspl_jax.types import Example

KINDS = ("natural", "iid", "dirichlet", "task", "quantity", "capacity", "pathological")
SITES = ("ash", "beech", "cherry")


def world(images: int, per_image=lambda i: 1 + i % 3, categories: int = 4) -> list[Example]:
  """Examples of `images` images over three sites; an image has several, not all side by side.

  Every other image is asked about, as in the shapes world.
  """
  out = [
    Example(
      f"{i}-{j}",
      f"image{i}",
      ("x",),
      question="what ?" * (i % 2),
      site=SITES[i % 3],
      labels=(str((i // 3) % categories),),
    )
    for i in range(images)
    for j in range(per_image(i))
  ]
  return out[::2] + out[1::2]


def one(_: int) -> int:
  return 1


def config(kind: str, **values) -> Data:
  defaults = {"num_clients": 3, "min_examples": 1}
  return Data(partition=kind, **(defaults | values))


def train_parts(examples, config, seed):
  return partition({"train": examples}, config, seed)["train"]


def owners(examples, clients) -> dict[str, set[str]]:
  """Clients that hold examples of each image."""
  out: dict[str, set[str]] = {}
  for name, indices in clients.items():
    for index in indices:
      out.setdefault(examples[index].image, set()).add(name)
  return out


def shares(examples, indices) -> np.ndarray:
  """Of each category among these examples."""
  names = sorted({example.labels for example in examples})
  counts = Counter(examples[i].labels for i in indices)
  return np.array([counts[name] for name in names]) / max(len(indices), 1)


def skew(examples, clients) -> float:
  """Mean total-variation distance of the clients' categories from all examples' categories."""
  everyone = shares(examples, range(len(examples)))
  return float(np.mean([abs(shares(examples, i) - everyone).sum() / 2 for i in clients.values()]))


def as_lists(clients) -> dict[str, list[int]]:
  return {name: indices.tolist() for name, indices in clients.items()}


@settings(max_examples=40, deadline=None, database=None)
@given(
  kind=st.sampled_from(KINDS),
  counts=st.lists(st.integers(1, 4), min_size=30, max_size=60),
  others=st.lists(st.integers(1, 4), max_size=20),
  seed=st.integers(0, 2**32),
)
def test_every_example_goes_to_one_client_and_every_image_too(kind, counts, others, seed):
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


def test_the_natural_partition_is_that_of_the_sites():
  splits = {"train": world(30), "test": world(2)}
  for split, clients in partition(splits, config("natural"), seed=0).items():
    assert list(clients) == list(SITES)
    for site, indices in clients.items():
      assert {splits[split][i].site for i in indices} <= {site}


def test_another_number_of_clients_than_sites_is_named():
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


def test_small_categories_go_by_their_shares_on_average():
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


def test_a_category_that_train_lacks_is_dealt_out_evenly():
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
def test_task_clients_have_captions_or_questions_alone(num_clients, captioning):
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
def test_a_split_follows_from_its_seed(kind):
  splits = {"train": world(60), "test": world(40)}
  first, again, other = (partition(splits, config(kind), seed) for seed in (3, 3, 4))
  for split in splits:
    assert as_lists(first[split]) == as_lists(again[split])
    assert as_lists(first[split]) != as_lists(other[split])


@pytest.mark.parametrize("kind", KINDS)
def test_a_splits_parts_do_not_depend_on_the_other_splits(kind):
  splits = {"train": world(60), "validation": world(20), "test": world(40)}
  everything = partition(splits, config(kind), seed=0)
  less = partition({"test": splits["test"], "train": splits["train"]}, config(kind), seed=0)
  for split, clients in less.items():
    assert as_lists(clients) == as_lists(everything[split])


@pytest.mark.parametrize("seed", [0, 1, module._TAG, 2**40 + 3, (1 << 32) + module._TAG])
def test_no_stream_is_that_of_a_clients_training(seed):
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
def test_partitions_are_those_that_results_were_published_of(kind, expected):
  splits = {"train": world(300), "test": world(50)}
  parts = partition(splits, config(kind, dirichlet_alpha=0.3), seed=7)
  assert digest({split: as_lists(clients) for split, clients in parts.items()}) == expected


def test_an_image_in_two_splits_is_named():
  test = [example for example in world(9) if example.image in ("image5", "image7")]
  check_images({"train": world(5), "validation": [], "test": test})
  with pytest.raises(
    UserError, match=r"'image5' is in train and in test \(1 such images\)\. Remove"
  ):
    check_images({"train": world(7), "validation": [], "test": test})


# Sizes


def images_of(examples, clients) -> list[int]:
  return [len({examples[i].image for i in indices}) for indices in clients.values()]


def test_a_small_alpha_makes_sizes_differ_more_and_labels_not():
  examples, spread = world(2000, one), []
  for alpha in (0.3, 30.0):
    values = config("quantity", num_clients=5, dirichlet_alpha=alpha)
    parts = [train_parts(examples, values, seed) for seed in range(5)]
    spread.append(np.mean([np.std(images_of(examples, clients)) for clients in parts]))
    large = {name: i for clients in parts for name, i in clients.items() if len(i) > 200}
    assert skew(examples, large) < 0.1
  assert spread[0] > 3 * spread[1] > 0


@pytest.mark.parametrize("kind", ["quantity", "capacity"])
def test_sizes_are_in_proportion_in_all_splits(kind):
  splits = {"train": world(6000, one), "test": world(600, one)}
  parts = partition(splits, config(kind, num_clients=8), seed=1)
  train, test = (np.array(images_of(splits[s], parts[s])) for s in splits)
  assert train.max() > 3 * train.min()
  assert abs(test - train / 10).max() <= 2


def test_sizes_follow_capacities_even_steps_apart():
  values = config("capacity", num_clients=7, capacity_ratio=64.0)
  clients = train_parts(world(5000, one), values, seed=3)
  capacity = capacities(list(clients), values, 3)
  assert list(capacity) == list(clients)
  assert sorted(capacity.values()) == pytest.approx([1, 2, 4, 8, 16, 32, 64])
  for name, indices in clients.items():
    assert abs(len(indices) - 5000 * capacity[name] / 127) <= 1
  assert capacities(list(clients), values, 4) != capacity
  assert capacities(list(clients), config("iid"), 3) == {}


# Labels


@pytest.mark.parametrize(
  "num_clients, k, categories", [(10, 2, 4), (5, 3, 15), (7, 1, 7), (3, 4, 4)]
)
def test_pathological_clients_have_so_many_labels_in_every_split(num_clients, k, categories):
  splits = {name: world(n, one, categories) for name, n in (("train", 3000), ("test", 600))}
  values = config("pathological", num_clients=num_clients, categories=k)
  for seed in range(5):
    parts = partition(splits, values, seed)
    for name, indices in parts["train"].items():
      own = {splits["train"][i].labels for i in indices}
      assert len(own) == k
      assert {splits["test"][i].labels for i in parts["test"][name]} == own
    sizes = [len(indices) for indices in parts["train"].values()]
    assert max(sizes) < 2.1 * min(sizes)


def test_a_large_label_is_cut_into_more_shards():
  labels = ["most"] * 900 + ["some"] * 200 + ["few"] * 100
  examples = [Example(f"{i}", f"{i}", ("x",), labels=(label,)) for i, label in enumerate(labels)]
  clients = train_parts(examples, config("pathological", num_clients=12, categories=1), seed=0)
  assert sorted(len(indices) for indices in clients.values()) == [100] * 12


@pytest.mark.parametrize("k", [1, 5])
def test_impossible_numbers_of_labels_are_named(k):
  with pytest.raises(UserError, match=rf"data.categories: expected 2 to 4 for 3 clients .*got {k}"):
    train_parts(world(60), config("pathological", categories=k), seed=0)


def scenes(images: int, seed: int, tag: str) -> list[Example]:
  """Two examples an image, of one to four of 20 labels, some of which are rare."""
  rng, likely = np.random.default_rng(seed), 1 / np.arange(1, 21)
  out = []
  for i in range(images):
    found = rng.choice(20, size=rng.integers(1, 5), replace=False, p=likely / likely.sum())
    labels = tuple(f"{label:02d}" for label in found)
    out += [Example(f"{tag}{i}-{j}", f"{tag}{i}", ("x",), labels=labels) for j in range(2)]
  return out


def by_label(examples, clients) -> np.ndarray:
  """Examples of each label at each client."""
  counts = [
    Counter(label for i in rows for label in examples[i].labels) for rows in clients.values()
  ]
  return np.array([[count[f"{label:02d}"] for count in counts] for label in range(20)])


def test_images_of_several_labels_go_whole_and_by_all_their_labels():
  splits = {"train": scenes(3000, 0, "a"), "test": scenes(1500, 1, "b")}
  values = config("dirichlet", num_clients=6, dirichlet_alpha=0.1)
  found = {}
  for kind in ("dirichlet", "iid"):
    values.partition = kind
    parts = partition(splits, values, seed=0)
    for split, clients in parts.items():
      assert sorted(np.concatenate(list(clients.values()))) == list(range(len(splits[split])))
      assert all(len(names) == 1 for names in owners(splits[split], clients).values())
    train, test = (by_label(splits[split], parts[split]) for split in splits)
    found[kind] = train / train.sum(axis=1, keepdims=True)
    assert abs(found[kind] - test / test.sum(axis=1, keepdims=True)).mean() < 0.05
  # Each of the six has about a sixth of a label where images are dealt evenly by chance.
  assert found["iid"].max(axis=1).mean() < 0.25 < 0.5 < found["dirichlet"].max(axis=1).mean()


def test_the_rarest_label_goes_exactly_by_its_shares():
  examples = scenes(2000, 0, "a")
  images = {example.image: example.labels for example in examples}
  names = ["a", "b", "c"]
  counts = Counter(label for labels in images.values() for label in labels)
  rarest = min(counts, key=lambda label: counts[label])
  shares = {label: np.array([0.5, 0.5, 0.0]) for label in counts} | {rarest: np.array([0, 0, 1.0])}
  owner = dirichlet._stratify(images, names, shares, np.random.default_rng(0))
  of_rarest = {owner[image] for image, labels in images.items() if rarest in labels}
  assert of_rarest == {"c"} and set(owner.values()) == {"a", "b", "c"}


@settings(max_examples=60, deadline=None, database=None)
@given(left=st.lists(st.integers(-3, 6), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_turns_are_those_of_the_published_loop(left, seed):
  """Sechidis et al. 2011, algorithm 1: one image at a time to whom most are left."""
  count = sum(max(n, 0) for n in left) * 2 // 3
  found = dirichlet._most_wanted(
    np.array(left), np.zeros(len(left), int), count, np.random.default_rng(seed)
  )
  after = np.array(left)
  for client in found:
    assert after[client] == after.max() > 0
    after[client] -= 1
  assert len(found) == count
