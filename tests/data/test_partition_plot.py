"""Pictures of partitions, from 2 to 1,000 clients."""

import sys

import numpy as np
import pytest
from PIL import Image

from afspl_jax.data import partition_plot
from afspl_jax.data.partition_plot import plot_partition


def manifest(num_clients: int, num_labels: int, seed: int = 0) -> dict:
  rng = np.random.default_rng(seed)
  labels = {
    f"client{i:04d}": {f"label{j}": int(n) for j, n in enumerate(rng.integers(9, size=num_labels))}
    for i in range(num_clients)
  }
  clients = {
    name: {"train": [f"{name}-{i}" for i in range(sum(found.values()) or 3)]}
    for name, found in labels.items()
  }
  return {"partition": "dirichlet", "clients": clients, "labels": labels}


@pytest.mark.parametrize(
  "num_clients, num_labels, height",
  [
    (2, 6, 212),
    (10, 3, 310),
    (2, 100, 230),
    (100, 6, 710),
    (1000, 100, 710),
    (3, 0, 170),
    (60, 0, 710),
  ],
)
def test_a_plot_is_as_high_as_its_clients_need(tmp_path, num_clients, num_labels, height):
  path = tmp_path / "partition.png"
  assert plot_partition(manifest(num_clients, num_labels), path)
  with Image.open(path) as image:
    assert image.size == (920, height)
    assert len(np.unique(np.asarray(image.convert("L")))) > 10
  assert list(tmp_path.iterdir()) == [path]


def test_the_rarest_of_many_labels_are_joined():
  found = manifest(5, 60)["labels"]
  labels, counts = partition_plot._table(found, list(found))
  assert len(labels) == 40 and labels[-1] == "other"
  assert counts.sum(axis=1).tolist() == [sum(part.values()) for part in found.values()]
  kept = [sum(part[label] for part in found.values()) for label in labels[:-1]]
  left = [
    sum(p[label] for p in found.values()) for label in found["client0000"] if label not in labels
  ]
  assert min(kept) >= max(left)


def test_a_client_without_examples_is_plotted(tmp_path):
  for number in (3, 50):
    found = manifest(number, 5)
    found["clients"]["client0001"]["train"], found["labels"]["client0001"] = [], {}
    assert plot_partition(found, tmp_path / f"{number}.png")


def test_without_matplotlib_there_is_no_plot_and_no_error(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
  assert not plot_partition(manifest(2, 2), tmp_path / "partition.png")
  assert not list(tmp_path.iterdir())
