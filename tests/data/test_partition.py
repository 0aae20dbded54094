import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afspl_jax.config import Data
from afspl_jax.data.partition import partition
from afspl_jax.errors import UserError
from afspl_jax.types import Example

KINDS = ("natural", "iid", "dirichlet")
SITES = ("ash", "beech", "cherry")


def world(images: int, per_image=lambda i: 1 + i % 3, categories: int = 4) -> list[Example]:
  """Examples of `images` images over three sites; an image has several, not all side by side."""
  out = [
    Example(f"{i}-{j}", f"image{i}", ("x",), site=SITES[i % 3], category=str((i // 3) % categories))
    for i in range(images)
    for j in range(per_image(i))
  ]
  return out[::2] + out[1::2]


def config(kind: str, **values) -> Data:
  defaults = {"num_clients": 3, "min_examples": 1}
  return Data(partition=kind, **(defaults | values))


def owners(examples, clients) -> dict[str, set[str]]:
  """Clients that hold examples of each image."""
  out: dict[str, set[str]] = {}
  for name, indices in clients.items():
    for index in indices:
      out.setdefault(examples[index].image, set()).add(name)
  return out


def skew(examples, clients) -> float:
  """Mean total-variation distance of the clients' categories from all examples' categories."""
  names = sorted({example.category for example in examples})

  def shares(indices):
    counts = np.array([[examples[i].category == name for name in names] for i in indices])
    return counts.mean(axis=0)

  everyone = shares(range(len(examples)))
  return float(np.mean([abs(shares(i) - everyone).sum() / 2 for i in clients.values()]))


@settings(max_examples=40, deadline=None, database=None)
@given(
  kind=st.sampled_from(KINDS),
  counts=st.lists(st.integers(1, 4), min_size=30, max_size=60),
  seed=st.integers(0, 2**32),
)
def test_every_example_goes_to_one_client_and_every_image_too(kind, counts, seed):
  examples = world(len(counts), lambda i: counts[i])
  clients = partition(examples, config(kind), seed)
  assert sorted(np.concatenate(list(clients.values()))) == list(range(len(examples)))
  assert all(len(names) == 1 for names in owners(examples, clients).values())
  assert len(clients) == 3 and all(len(indices) >= 1 for indices in clients.values())


def test_the_natural_partition_is_that_of_the_sites():
  examples = world(30)
  clients = partition(examples, config("natural"), seed=0)
  assert list(clients) == list(SITES)
  for site, indices in clients.items():
    assert {examples[i].site for i in indices} == {site}


def test_another_number_of_clients_than_sites_is_named():
  with pytest.raises(UserError, match=r"data.num_clients: expected 3, .*natural.*; got 5"):
    partition(world(30), config("natural", num_clients=5), seed=0)


def test_iid_clients_have_equally_many_images():
  examples = world(32)
  clients = partition(examples, config("iid", num_clients=5), seed=0)
  images = [len({examples[i].image for i in indices}) for indices in clients.values()]
  assert sorted(images) == [6, 6, 6, 7, 7]


def test_a_small_alpha_skews_more_than_a_large_one_and_iid_least():
  examples = world(600, per_image=lambda i: 1)

  def measured(kind, alpha):
    values = config(kind, dirichlet_alpha=alpha, num_clients=5)
    return np.mean([skew(examples, partition(examples, values, seed)) for seed in range(3)])

  small, large, none = (
    measured(*c) for c in [("dirichlet", 0.1), ("dirichlet", 10.0), ("iid", 1.0)]
  )
  assert small > 2 * large > 0
  assert small > 0.4 and none < 0.1


@pytest.mark.parametrize("kind", ["iid", "dirichlet"])
def test_a_split_follows_from_its_seed(kind):
  examples = world(60)
  splits = [
    {name: indices.tolist() for name, indices in partition(examples, config(kind), seed).items()}
    for seed in (3, 3, 4)
  ]
  assert splits[0] == splits[1]
  assert splits[0] != splits[2]


def test_dirichlet_draws_again_until_every_client_reaches_the_floor():
  examples = world(100, per_image=lambda i: 1)
  values = config("dirichlet", dirichlet_alpha=0.3, num_clients=4)
  first = [min(map(len, partition(examples, values, seed).values())) for seed in range(20)]
  assert min(first) < 8  # the floor does bind
  values.min_examples = 8
  for seed in range(20):
    assert min(map(len, partition(examples, values, seed).values())) >= 8


@pytest.mark.parametrize(
  "kind, values, client, count",
  [
    ("natural", {"min_examples": 11}, "ash", 10),
    ("iid", {"num_clients": 7, "min_examples": 5}, "client000[2-6]", 4),
    ("dirichlet", {"num_clients": 3, "min_examples": 11}, "client000[0-2]", r"\d"),
  ],
)
def test_a_floor_that_cannot_be_reached_names_the_client_and_its_count(kind, values, client, count):
  examples = world(30, per_image=lambda i: 1)
  with pytest.raises(UserError) as error:
    partition(examples, config(kind, **values), seed=0)
  floor = values["min_examples"]
  assert error.match(
    rf"data.min_examples: expected at least {floor} .*{client} would get {count}\. Use fewer"
  )
  assert "\n" not in str(error.value)


def test_an_unknown_partition_is_named():
  with pytest.raises(UserError, match=r"data.partition: expected one of natural, iid, dirichlet"):
    partition(world(9), config("by_hand"), seed=0)
