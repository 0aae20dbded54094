"""Splits examples over clients. Within a split, all examples of one image go to one client."""

import zlib
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from afspl_jax.config.experiment import Data
from afspl_jax.data import manifest, partition_plot, partitions
from afspl_jax.data.example_cap import capped
from afspl_jax.data.manifest import Clients
from afspl_jax.data.partitions import AssignSplit, Examples
from afspl_jax.errors import UserError

PICTURE = "partition.png"  # beside the manifest

_TRIES, _ASSIGNED = 1000, 10**7  # most attempts, and most examples assigned in all of them
# The seeds of this module begin with this number, have four numbers and end in 1. Those of training
# begin with the experiment's seed and have three numbers, to which NumPy appends zeros.
_TAG = 0x70617274


def partition(splits: Mapping[str, Examples], config: Data, seed: int) -> dict[str, Clients]:
  """Splits the examples of every split by `config.partition`.

  A client's part of validation and test is drawn in the same way as its part of train, and may be
  empty. Of train, a client keeps at most `config.max_examples`.

  Args:
    splits: the examples of "train" and of any others.
    config: `partition` names a module in data/partitions/, or a manifest.
    seed: equal seeds give equal partitions.

  Returns:
    For each split, the clients; all splits have the same names.

  Raises:
    UserError: a client would hold fewer than `config.min_examples` examples of train, or the
      examples do not fit the partition.
  """
  clients = _shared_out(splits, config, seed)
  return clients | {"train": capped(clients["train"], splits["train"], config, seed)}


def _shared_out(splits: Mapping[str, Examples], config: Data, seed: int) -> dict[str, Clients]:
  """All examples of every split, by client."""
  if path := manifest.manifest_path(config.partition):
    given = manifest.assign_by_manifest(
      manifest.read_manifest(path),
      splits,
      config.num_clients,
      path,
      may_lack=("train",) if config.max_examples else (),
    )
    _check_floor(given["train"], config)
    return given
  partitioner = partitions.get_partitioner(config.partition)
  names = partitioner.clients(splits, config)

  def parts(split: str, assign_split: AssignSplit) -> Clients:
    client_of = assign_split(splits[split], _stream(seed, split))
    out: dict[str, list[int]] = {name: [] for name in names}
    for index, example in enumerate(splits[split]):
      out[client_of[example.image]].append(index)
    return {name: np.array(indices, int) for name, indices in out.items()}

  # Draw again until every client reaches the floor, as Hsu et al. and flwr-datasets do.
  rng = _stream(seed, "shares")
  tries = min(_TRIES, 1 + _ASSIGNED // max(len(splits["train"]), 1)) if partitioner.REDRAWN else 1
  for _ in range(tries):
    assign_split = partitioner.assign(splits["train"], names, config, rng)
    train = parts("train", assign_split)
    if min(map(len, train.values())) >= config.min_examples:
      break
  _check_floor(train, config)
  return {split: train if split == "train" else parts(split, assign_split) for split in splits}


def check_split_images(splits: Mapping[str, Examples]) -> None:
  """Checks that no image is in two splits.

  Raises:
    UserError: one is; the message names it.
  """
  images = {split: {example.image for example in examples} for split, examples in splits.items()}
  for (one, these), (other, those) in combinations(images.items(), 2):
    if both := sorted(these & those):
      raise UserError(
        f"data.source: expected every image in one split only; {both[0]!r} is in {one} and {other}"
        f" ({len(both)} such images). Remove it from one of them."
      )


def client_capacities(names: list[str], config: Data, seed: int) -> dict[str, float]:
  """The capacity of each client, if the partition defines any; else {}."""
  if manifest.manifest_path(config.partition):
    return {}
  capacities = getattr(partitions.get_partitioner(config.partition), "capacities", None)
  return capacities(names, config, _stream(seed, "shares")) if capacities else {}


def save_partition(
  folder: Path,
  splits: Mapping[str, Examples],
  clients: Mapping[str, Clients],
  config: Data,
  seed: int,
  fingerprints: Mapping[str, str],
) -> dict[str, Any]:
  """Writes a partition's manifest and picture to a folder, unless it has them.

  Args:
    folder: an existing folder.
    splits: the examples of "train" and of any others.
    clients: from `partition`, for the same splits.
    config: settings of the partition.
    seed: seed of the partition.
    fingerprints: of the splits' sources.

  Returns:
    The manifest.
  """
  capacity = client_capacities(list(clients["train"]), config, seed)
  contents = manifest.make_manifest(
    splits, clients, config.partition, seed, fingerprints, capacity, config.max_examples
  )
  if manifest.write_manifest(folder / manifest.FILE, contents) or not (folder / PICTURE).exists():
    partition_plot.plot_partition(contents, folder / PICTURE)
  return contents


def _stream(seed: int, purpose: str) -> np.random.Generator:
  """A generator for each purpose, so the draws of a split do not depend on earlier draws."""
  return np.random.default_rng((_TAG, seed, zlib.crc32(purpose.encode()), 1))


def _check_floor(train: Clients, config: Data) -> None:
  smallest = min(train, key=lambda name: len(train[name]))
  if len(train[smallest]) < config.min_examples:
    raise UserError(
      f"data.min_examples: expected at least {config.min_examples} examples a client; {smallest}"
      f" would get {len(train[smallest])}. Use fewer clients, a larger dirichlet_alpha, or a lower"
      " floor."
    )
