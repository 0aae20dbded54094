"""A partition as a file: which client has which examples. A run writes one and can read one."""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from afspl_jax.config.nested_values import digest
from afspl_jax.data.partitions import Examples
from afspl_jax.data.splits import named_split
from afspl_jax.errors import UserError
from afspl_jax.storage.atomic_files import write_text
from afspl_jax.storage.json_text import parse_json

FILE = "partition.json"  # in a run's folder
_KIND = "manifest:"

Clients = dict[str, Int[np.ndarray, " _"]]  # client's name -> indices of its examples
Ids = dict[str, dict[str, list[str]]]  # client's name -> split -> ids of its examples


def example_ids(splits: Mapping[str, Examples], clients: Mapping[str, Clients]) -> Ids:
  """The clients' examples by their ids, which do not depend on the order of the source."""
  return {
    name: {
      split: [splits[split][i].id for i in parts[name].tolist()] for split, parts in clients.items()
    }
    for name in next(iter(clients.values()), {})
  }


def make_manifest(
  splits: Mapping[str, Examples],
  clients: Mapping[str, Clients],
  partition: str,
  seed: int,
  fingerprints: Mapping[str, str],
  capacity: Mapping[str, float],
  max_examples: int = 0,
) -> dict[str, Any]:
  """Makes a manifest: plain values that `write_manifest` writes to a file.

  Args:
    splits: the examples of "train" and of any others.
    clients: from `partition`, of the same splits.
    partition: the name of the partition, `data.partition`.
    seed: the seed of the partition.
    fingerprints: of the splits' sources.
    capacity: of the clients; empty if the partition has none.
    max_examples: most examples of train at a client, to which `clients` keep; 0: all.

  Raises:
    UserError: two examples of a split have one id.
  """
  for split, examples in splits.items():
    if twice := [i for i, n in Counter(example.id for example in examples).items() if n > 1]:
      raise UserError(
        f"data.source: expected a unique id for every example of {split}; several have {twice[0]!r}"
        f" ({len(twice)} such ids). Rename them."
      )
  train = {
    name: Counter(label for i in rows.tolist() for label in splits["train"][i].labels)
    for name, rows in clients["train"].items()
  }
  held = example_ids(splits, clients)
  out = {
    "partition": partition,
    "seed": seed,
    "source": dict(fingerprints),
    "clients": held,
    "labels": {name: dict(sorted(counts.items())) for name, counts in train.items()},
    "hash": digest(held),
  }
  out |= {"capacity": dict(capacity)} if capacity else {}
  return out | ({"max_examples": max_examples} if max_examples else {})


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> bool:
  """Writes a manifest completely or not at all; returns whether the file changed."""
  text = json.dumps(manifest, ensure_ascii=False) + "\n"
  if path.exists() and path.read_bytes() == text.encode():
    return False
  write_text(path, text)
  return True


def manifest_path(partition: str) -> Path | None:
  """The file that `manifest:PATH` names; None for any other partition."""
  return Path(partition.removeprefix(_KIND)).expanduser() if partition.startswith(_KIND) else None


def comparable_partition(partition: str) -> str:
  """`partition`, with the path of a manifest replaced by a hash of its clients.

  So that two sites can compare partitions whose manifests are in different folders.
  """
  path = manifest_path(partition)
  return f"{_KIND}{digest(read_manifest(path))}" if path else partition


def read_manifest(path: Path) -> Ids:
  """Reads the clients of a manifest, sorted by their names.

  Only "clients" is required, so a manifest can be written by hand; a "hash" must match the clients.

  Raises:
    UserError: the file is not a manifest, or was changed.
  """
  where = f"data.partition={_KIND}{path}"
  try:
    found = parse_json(path.read_bytes())
  except (OSError, ValueError) as error:  # ValueError: also what is not UTF-8
    raise UserError(
      f"{where}: expected a JSON file such as a run's {FILE}; got: {error}. Name another file."
    ) from error
  clients = found.get("clients") if isinstance(found, dict) else None
  if not isinstance(clients, dict) or not clients or not all(map(_is_part, clients.values())):
    raise UserError(
      f'{where}: expected "clients": {{name: {{split: [example ids]}}}}; got'
      f" {json.dumps(clients)!s:.80}. Compare it with a run's {FILE}."
    )
  if "hash" in found and found["hash"] != digest(clients):
    raise UserError(
      f'{where}: expected "hash": "{digest(clients)}", as its clients have; got'
      f" {found['hash']!r:.40}. It was changed or damaged: make it again, or remove its hash."
    )
  return {name: _by_split(parts) for name, parts in sorted(clients.items())}


def assign_by_manifest(
  clients: Ids,
  splits: Mapping[str, Examples],
  num_clients: int,
  path: Path,
  may_lack: Collection[str] = (),
) -> dict[str, Clients]:
  """Assigns the examples of some splits as a manifest says.

  Args:
    clients: from `read_manifest`.
    splits: the examples.
    num_clients: the expected number of clients.
    path: the file of the manifest, for messages.
    may_lack: splits of which some examples may be at no client.

  Returns:
    For each split, the clients; all splits have the same ones.

  Raises:
    UserError: the manifest has other clients or other examples, or gives the examples of one image
      to several clients.
  """
  where = f"data.partition={_KIND}{path}"
  if len(clients) != num_clients:
    raise UserError(
      f"data.num_clients: expected {len(clients)}, the clients of {path}; got {num_clients}"
    )
  out: dict[str, Clients] = {}
  for split, examples in splits.items():
    client_of = _clients_by_id(clients, split, examples, where)
    if split not in may_lack:
      _check_all_assigned(client_of, split, examples, where)
    examples_here = [(i, one) for i, one in enumerate(examples) if one.id in client_of]
    _check_whole_images([one for _, one in examples_here], client_of, where)
    rows: dict[str, list[int]] = {name: [] for name in clients}
    for i, example in examples_here:
      rows[client_of[example.id]].append(i)
    out[split] = {name: np.array(indices, int) for name, indices in rows.items()}
  return out


def _clients_by_id(clients: Ids, split: str, examples: Examples, where: str) -> dict[str, str]:
  """The client of each example of a split, by the example's id."""
  ids = {example.id for example in examples}
  client_of: dict[str, str] = {}
  for name, parts in clients.items():
    for one in parts.get(split, []):
      if one not in ids:
        raise UserError(
          f"{where}: expected ids of examples of {split}; {name} has {one!r:.60}, which the"
          " source does not have. Use the manifest with the data it was made from."
        )
      if one in client_of:
        raise UserError(
          f"{where}: expected every example of {split} once; {client_of[one]} and {name} both"
          f" have {one!r:.60}. Remove one."
        )
      client_of[one] = name
  return client_of


def _check_all_assigned(
  client_of: Mapping[str, str], split: str, examples: Examples, where: str
) -> None:
  """Checks that every example of a split is at a client."""
  if absent := [example.id for example in examples if example.id not in client_of]:
    raise UserError(
      f"{where}: expected a client for every example of {split}; {len(absent)} have none, the"
      f" first is {absent[0]!r:.60}. Add them, or use the data it was made from; if it was"
      " made with data.max_examples, set that too."
    )


def _check_whole_images(examples: Examples, client_of: Mapping[str, str], where: str) -> None:
  """Checks that all examples of an image are at one client."""
  image_client: dict[str, str] = {}
  for example in examples:
    client = client_of[example.id]
    if image_client.setdefault(example.image, client) != client:
      raise UserError(
        f"{where}: expected all examples of an image at one client; {example.image!r:.60} is at"
        f" {image_client[example.image]} and at {client}. Move them together."
      )


def _by_split(parts: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
  out: dict[str, list[str]] = {}
  for name, ids in parts.items():
    out.setdefault(named_split(name) or name, []).extend(ids)
  return out


def _is_part(value: Any) -> bool:
  return isinstance(value, dict) and all(
    isinstance(part, list) and all(isinstance(one, str) for one in part) for part in value.values()
  )
