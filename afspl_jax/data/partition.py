"""Splits examples over clients. Within a split, all examples of one image go to one client."""

import zlib
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from afspl_jax.config.experiment import Data
from afspl_jax.data import manifest, partition_plot, partitions
from afspl_jax.data.manifest import Clients
from afspl_jax.data.partitions import Deal, Examples
from afspl_jax.errors import UserError

PICTURE = "partition.png"  # beside the manifest

_TRIES, _DEALT = 1000, 10**7  # draws at most, and examples in all of them
# Leads the seeds of this module. Those of training start with the experiment's seed and have three
# numbers, which NumPy fills up with zeros; ours have four and end in 1.
_TAG = 0x70617274


def partition(splits: Mapping[str, Examples], config: Data, seed: int) -> dict[str, Clients]:
  """Splits the examples of every split by `config.partition`.

  A client's own part of validation and test is drawn as its part of train is, and may be empty.

  Args:
    splits: the examples of "train" and of any others.
    config: `partition` names a file in data/partitions/, or a manifest that says who has what.
    seed: equal seeds split equally.

  Returns:
    Of each split, the clients: the same names in all.

  Raises:
    UserError: a client would hold fewer than `config.min_examples` examples of train, or the
      examples do not fit the partition.
  """
  if path := manifest.path_of(config.partition):
    given = manifest.assign(manifest.read(path), splits, config.num_clients, path)
    _check_floor(given["train"], config)
    return given
  partitioner = partitions.get(config.partition)
  names = partitioner.clients(splits, config)

  def parts(split: str, deal: Deal) -> Clients:
    owner = deal(splits[split], _stream(seed, split))
    out: dict[str, list[int]] = {name: [] for name in names}
    for index, example in enumerate(splits[split]):
      out[owner[example.image]].append(index)
    return {name: np.array(indices, int) for name, indices in out.items()}

  # Draw again until every client reaches the floor, as Hsu et al. and flwr-datasets do.
  draws = _stream(seed, "shares")
  tries = min(_TRIES, 1 + _DEALT // max(len(splits["train"]), 1)) if partitioner.REDRAWN else 1
  for _ in range(tries):
    deal = partitioner.draw(splits["train"], names, config, draws)
    train = parts("train", deal)
    if min(map(len, train.values())) >= config.min_examples:
      break
  _check_floor(train, config)
  return {split: train if split == "train" else parts(split, deal) for split in splits}


def check_images(splits: Mapping[str, Examples]) -> None:
  """Sees to it that no image is in two splits.

  Raises:
    UserError: naming one that is.
  """
  images = {split: {example.image for example in examples} for split, examples in splits.items()}
  for (one, these), (other, those) in combinations(images.items(), 2):
    if both := sorted(these & those):
      raise UserError(
        f"data.source: expected an image in one split alone; {both[0]!r} is in {one} and in {other}"
        f" ({len(both)} such images). Remove it from one of them."
      )


def capacities(names: list[str], config: Data, seed: int) -> dict[str, float]:
  """What each client can afford, by a partition that says so; {} by any other."""
  if manifest.path_of(config.partition):
    return {}
  told = getattr(partitions.get(config.partition), "capacities", None)
  return told(names, config, _stream(seed, "shares")) if told else {}


def record(
  folder: Path,
  splits: Mapping[str, Examples],
  clients: Mapping[str, Clients],
  config: Data,
  seed: int,
  fingerprints: Mapping[str, str],
) -> dict[str, Any]:
  """Leaves a partition's manifest and picture in a folder, where they are not there yet.

  Args:
    folder: an existing one.
    splits: the examples of "train" and of any others.
    clients: from `partition`, of the same.
    config: its settings.
    seed: its seed.
    fingerprints: of the splits' sources.

  Returns:
    The manifest.
  """
  capacity = capacities(list(clients["train"]), config, seed)
  told = manifest.describe(splits, clients, config.partition, seed, fingerprints, capacity)
  if manifest.write(folder / manifest.FILE, told) or not (folder / PICTURE).exists():
    partition_plot.draw(told, folder / PICTURE)
  return told


def _stream(seed: int, purpose: str) -> np.random.Generator:
  """A stream for each purpose, so that a split's deal does not depend on what was drawn before."""
  return np.random.default_rng((_TAG, seed, zlib.crc32(purpose.encode()), 1))


def _check_floor(train: Clients, config: Data) -> None:
  smallest = min(train, key=lambda name: len(train[name]))
  if len(train[smallest]) < config.min_examples:
    raise UserError(
      f"data.min_examples: expected at least {config.min_examples} examples a client; {smallest}"
      f" would get {len(train[smallest])}. Use fewer clients, a larger dirichlet_alpha, or a lower"
      " floor."
    )
