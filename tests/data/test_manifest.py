"""A partition as a file: left behind by a run, and given to another."""

import json

import pytest

from afspl_jax.config.experiment import Data
from afspl_jax.config.nested_values import digest
from afspl_jax.data import manifest
from afspl_jax.data.partition import PICTURE, partition, save_partition
from afspl_jax.errors import UserError
from afspl_jax.types import Example


def world(images: int, tag: str) -> list[Example]:
  """Two examples of each image."""
  return [
    Example(f"{tag}{i}-{j}", f"{tag}{i}.jpg", ("x",), labels=("ab"[i % 2], "c"))
    for i in range(images)
    for j in range(2)
  ]


SPLITS = {"train": world(40, "t"), "validation": world(8, "v"), "test": world(9, "e")}
PRINTS = {split: f"print of {split}" for split in SPLITS}


def values(kind: str, **others) -> Data:
  return Data(partition=kind, num_clients=4, min_examples=1, **others)


@pytest.fixture
def file(tmp_path):
  """A manifest as a run leaves it."""
  config = values("dirichlet")
  save_partition(tmp_path, SPLITS, partition(SPLITS, config, 0), config, 0, PRINTS)
  return tmp_path / manifest.FILE


def test_a_manifest_lists_the_examples_of_each_client(file):
  found = json.loads(file.read_text())
  assert list(found) == ["partition", "seed", "source", "clients", "labels", "hash"]
  assert (found["partition"], found["seed"], found["source"]) == ("dirichlet", 0, PRINTS)
  parts = partition(SPLITS, values("dirichlet"), 0)
  for name, held in found["clients"].items():
    assert list(held) == list(SPLITS)
    for split, ids in held.items():
      assert ids == [SPLITS[split][i].id for i in parts[split][name]]
    labels = [label for i in parts["train"][name] for label in SPLITS["train"][i].labels]
    assert found["labels"][name] == {label: labels.count(label) for label in sorted(set(labels))}
  assert list(found["clients"]) == list(parts["train"])
  assert found["hash"] == digest(found["clients"])


def test_capacities_are_in_the_manifest(tmp_path):
  config = values("capacity", capacity_ratio=8.0)
  save_partition(tmp_path, SPLITS, partition(SPLITS, config, 0), config, 0, PRINTS)
  found = json.loads((tmp_path / manifest.FILE).read_text())
  assert sorted(found["capacity"].values()) == pytest.approx([1, 2, 4, 8])
  sizes = {name: len(held["train"]) for name, held in found["clients"].items()}
  assert sorted(sizes, key=sizes.get) == sorted(found["capacity"], key=found["capacity"].get)


def test_a_manifest_applies_to_examples_in_another_order(file):
  turned = {split: examples[::-1] for split, examples in SPLITS.items()}
  parts = partition(turned, values(f"manifest:{file}"), seed=9)
  assert manifest.example_ids(
    SPLITS, partition(SPLITS, values(f"manifest:{file}"), 9)
  ) == manifest.read_manifest(file)
  for split, clients in parts.items():
    for name, rows in clients.items():
      held = {turned[split][i].id for i in rows}
      assert held == set(manifest.read_manifest(file)[name][split])


def test_missing_splits_are_not_required(file):
  parts = partition({"train": SPLITS["train"]}, values(f"manifest:{file}"), seed=0)
  assert list(parts) == ["train"]


def test_only_clients_are_required_and_their_order_does_not_matter(file, tmp_path):
  clients = json.loads(file.read_text())["clients"]
  by_hand = tmp_path / "by_hand.json"
  for parts in clients.values():
    parts["Val"] = parts.pop("validation")
  by_hand.write_text(json.dumps({"clients": dict(reversed(clients.items()))}))
  first, second = (partition(SPLITS, values(f"manifest:{path}"), 0) for path in (file, by_hand))
  assert list(second["train"]) == list(first["train"])
  assert manifest.comparable_partition(f"manifest:{by_hand}") == manifest.comparable_partition(
    f"manifest:{file}"
  )
  assert manifest.comparable_partition("iid") == "iid"


def move(clients, split, one, to):
  """Gives an example to another client, None to none, and leaves it where it was if it is there."""
  for parts in clients.values():
    if to is None and one in parts[split]:
      parts[split].remove(one)
  if to is not None:
    clients[to][split].append(one)


def other(clients, split, one):
  return next(name for name, parts in clients.items() if one not in parts[split])


@pytest.mark.parametrize(
  "damage, message",
  [
    (
      lambda c: move(c, "test", "e9-0", "client0001"),
      r"expected ids .* of test; client0001 has 'e9",
    ),
    (
      lambda c: move(c, "train", "t3-1", None),
      r"a client for every example of train; 1 have none, .*'t3-1'",
    ),
    (
      lambda c: [parts.pop("validation") for parts in c.values()],
      r"a client for every example of validation; 16 have none, the first is 'v0-0'",
    ),
    (
      lambda c: move(c, "test", "e2-0", other(c, "test", "e2-0")),
      r"test once; client0000 and client0002 both have 'e2-0'",
    ),
    (lambda c: c.pop("client0002"), r"data.num_clients: expected 3, the clients of .*; got 4"),
  ],
)
def test_a_manifest_that_does_not_fit_is_named(file, damage, message):
  found = json.loads(file.read_text())
  damage(found["clients"])
  found["hash"] = digest(found["clients"])
  file.write_text(json.dumps(found))
  with pytest.raises(UserError, match=message) as error:
    partition(SPLITS, values(f"manifest:{file}"), seed=0)
  assert "\n" not in str(error.value)


def test_an_image_at_two_clients_is_named(file):
  found = json.loads(file.read_text())
  clients = found["clients"]
  holder = next(name for name, parts in clients.items() if "t0-0" in parts["train"])
  clients[holder]["train"].remove("t0-0")
  clients[next(name for name in clients if name != holder)]["train"].append("t0-0")
  del found["hash"]
  file.write_text(json.dumps(found))
  with pytest.raises(UserError, match=r"all examples of an image at one client; 't0\.jpg' is"):
    partition(SPLITS, values(f"manifest:{file}"), seed=0)


def test_a_changed_manifest_is_rejected_by_its_hash(file):
  found = json.loads(file.read_text())
  a, b, *_ = found["clients"].values()
  a["train"], b["train"] = b["train"], a["train"]
  file.write_text(json.dumps(found))
  with pytest.raises(UserError, match=r'expected "hash": "\w{16}", .*; got \'\w{16}\'. It was'):
    partition(SPLITS, values(f"manifest:{file}"), seed=0)


@pytest.mark.parametrize(
  "text, message",
  [
    (None, "expected a JSON file such as a run's partition.json; got: .*No such file"),
    ("{", "expected a JSON file"),
    ("\udcff", "expected a JSON file"),
    ("[]", r'expected "clients": .*; got null'),
    ('{"clients": {}}', 'expected "clients"'),
    ('{"clients": {"a": ["t0-0"]}}', 'expected "clients"'),
    ('{"clients": {"a": {"train": [3]}}}', 'expected "clients"'),
  ],
)
def test_a_file_that_is_not_a_manifest_is_named(tmp_path, text, message):
  file = tmp_path / "partition.json"
  if text is not None:
    file.write_bytes(text.encode(errors="surrogateescape"))
  with pytest.raises(UserError, match=message) as error:
    partition(SPLITS, values(f"manifest:{file}"), seed=0)
  assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_min_examples_applies_to_a_manifest(file):
  with pytest.raises(UserError, match=r"data.min_examples: expected at least 70 .* would get"):
    partition(SPLITS, Data(partition=f"manifest:{file}", num_clients=4, min_examples=70), seed=0)


def test_repeated_ids_are_named(tmp_path):
  twice = {"train": [*world(8, "t"), *world(1, "t")]}
  config = values("iid")
  with pytest.raises(
    UserError, match=r"data.source: expected a unique id for every .*'t0-0' \(2 such"
  ):
    save_partition(tmp_path, twice, partition(twice, config, 0), config, 0, {})
  assert not list(tmp_path.iterdir())


def test_an_unchanged_manifest_is_not_written_again(file):
  picture = file.with_name(PICTURE)
  before = file.stat().st_mtime_ns, picture.stat().st_mtime_ns
  config = values("dirichlet")
  save_partition(file.parent, SPLITS, partition(SPLITS, config, 0), config, 0, PRINTS)
  assert (file.stat().st_mtime_ns, picture.stat().st_mtime_ns) == before
  save_partition(file.parent, SPLITS, partition(SPLITS, config, 1), config, 1, PRINTS)
  assert file.stat().st_mtime_ns > before[0] and picture.stat().st_mtime_ns > before[1]
