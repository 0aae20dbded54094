from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afspl_jax.data.partition import client_capacities, partition
from afspl_jax.data.partitions import dirichlet, iid
from afspl_jax.errors import UserError
from afspl_jax.types import Example
from tests.data.dealt import config, one, owners, skew, train_parts, world


def images_of(examples, clients) -> list[int]:
  return [len({examples[i].image for i in indices}) for indices in clients.values()]


def test_a_small_alpha_makes_sizes_but_not_labels_differ_more():
  examples, spread = world(2000, one), []
  for alpha in (0.3, 30.0):
    values = config("quantity", num_clients=5, dirichlet_alpha=alpha)
    parts = [train_parts(examples, values, seed) for seed in range(5)]
    spread.append(np.mean([np.std(images_of(examples, clients)) for clients in parts]))
    large = {name: i for clients in parts for name, i in clients.items() if len(i) > 200}
    assert skew(examples, large) < 0.1
  assert spread[0] > 3 * spread[1] > 0


@pytest.mark.parametrize("kind", ["quantity", "capacity"])
def test_sizes_are_proportional_in_all_splits(kind):
  splits = {"train": world(6000, one), "test": world(600, one)}
  parts = partition(splits, config(kind, num_clients=8), seed=1)
  train, test = (np.array(images_of(splits[s], parts[s])) for s in splits)
  assert train.max() > 3 * train.min()
  assert abs(test - train / 10).max() <= 2


def test_sizes_follow_capacities_on_a_logarithmic_scale():
  values = config("capacity", num_clients=7, capacity_ratio=64.0)
  clients = train_parts(world(5000, one), values, seed=3)
  capacity = client_capacities(list(clients), values, 3)
  assert list(capacity) == list(clients)
  assert sorted(capacity.values()) == pytest.approx([1, 2, 4, 8, 16, 32, 64])
  for name, indices in clients.items():
    assert abs(len(indices) - 5000 * capacity[name] / 127) <= 1
  assert client_capacities(list(clients), values, 4) != capacity
  assert client_capacities(list(clients), config("iid"), 3) == {}


def test_any_partition_may_define_capacities(monkeypatch):
  monkeypatch.setattr(iid, "capacities", lambda names, *_: dict.fromkeys(names, 2.0), raising=False)
  assert client_capacities(["a", "b"], config("iid"), 3) == {"a": 2.0, "b": 2.0}
  assert client_capacities(["a", "b"], config("manifest:one.json"), 3) == {}


# Labels


@pytest.mark.parametrize(
  "num_clients, k, categories", [(10, 2, 4), (5, 3, 15), (7, 1, 7), (3, 4, 4)]
)
def test_pathological_clients_have_k_labels_in_every_split(num_clients, k, categories):
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


def test_images_of_several_labels_are_stratified_by_all_labels():
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


def test_the_rarest_label_matches_its_shares_exactly():
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
def test_the_order_of_clients_equals_that_of_the_published_loop(left, seed):
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
