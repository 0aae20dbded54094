"""Who has which examples, as a file: a partition that a run leaves behind, and may be given."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from afspl_jax.config.nested_values import digest
from afspl_jax.errors import UserError
from afspl_jax.storage.atomic_files import write_text
from afspl_jax.storage.json_text import parse
from afspl_jax.types import Example

FILE = "partition.json"  # in a run's folder
_KIND = "manifest:"

Examples = Sequence[Example]
Clients = dict[str, Int[np.ndarray, " examples"]]  # client's name -> indices of its examples
Ids = dict[str, dict[str, list[str]]]  # client's name -> split -> ids of its examples


def ids(splits: Mapping[str, Examples], clients: Mapping[str, Clients]) -> Ids:
  """The clients' examples by their ids, which stay the same when a source orders them anew."""
  return {
    name: {
      split: [splits[split][i].id for i in parts[name].tolist()] for split, parts in clients.items()
    }
    for name in next(iter(clients.values()), {})
  }


def describe(
  splits: Mapping[str, Examples],
  clients: Mapping[str, Clients],
  partition: str,
  seed: int,
  fingerprints: Mapping[str, str],
  capacity: Mapping[str, float],
) -> dict[str, Any]:
  """A manifest: plain values, as `write` puts them into a file.

  Args:
    splits: the examples of "train" and of any others.
    clients: from `partition`, of the same splits.
    partition: the kind, `data.partition`.
    seed: that it was made with.
    fingerprints: of the splits' sources.
    capacity: of the clients, where the partition has any.

  Raises:
    UserError: two examples of a split have one id.
  """
  for split, examples in splits.items():
    if twice := [i for i, n in Counter(example.id for example in examples).items() if n > 1]:
      raise UserError(
        f"data.source: expected an id for every example of {split}; {twice[0]!r} is that of several"
        f" ({len(twice)} such ids). Rename them."
      )
  train = {
    name: Counter(label for i in rows.tolist() for label in splits["train"][i].labels)
    for name, rows in clients["train"].items()
  }
  held = ids(splits, clients)
  out = {
    "partition": partition,
    "seed": seed,
    "source": dict(fingerprints),
    "clients": held,
    "labels": {name: dict(sorted(counts.items())) for name, counts in train.items()},
    "hash": digest(held),
  }
  return out | ({"capacity": dict(capacity)} if capacity else {})


def write(path: Path, manifest: Mapping[str, Any]) -> bool:
  """Writes a manifest whole or not at all; returns whether the file was another before."""
  text = json.dumps(manifest, ensure_ascii=False) + "\n"
  if path.exists() and path.read_bytes() == text.encode():
    return False
  write_text(path, text)
  return True


def path_of(partition: str) -> Path | None:
  """The file that `manifest:PATH` names; None of any other kind of partition."""
  return Path(partition.removeprefix(_KIND)).expanduser() if partition.startswith(_KIND) else None


def agreed(partition: str) -> str:
  """`partition`, or what manifests of equal clients have in common, wherever they lie."""
  path = path_of(partition)
  return f"{_KIND}{digest(read(path))}" if path else partition


def read(path: Path) -> Ids:
  """The clients of a manifest, sorted by their names.

  Only "clients" must be there, so that one may be written by hand; a "hash" must be theirs.

  Raises:
    UserError: the file is no manifest, or was changed.
  """
  where = f"data.partition={_KIND}{path}"
  try:
    found = parse(path.read_bytes())
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
      f'{where}: expected "hash": "{digest(clients)}", that of its clients; got'
      f" {found['hash']!r:.40}. It was changed or damaged: make it again, or remove its hash."
    )
  return dict(sorted(clients.items()))


def assign(
  clients: Ids, splits: Mapping[str, Examples], num_clients: int, path: Path
) -> dict[str, Clients]:
  """What a manifest gives to whom, of the splits that are here.

  Args:
    clients: from `read`.
    splits: the examples.
    num_clients: that there must be.
    path: where the manifest was read, for messages.

  Returns:
    Of each split, the clients, the same in all.

  Raises:
    UserError: it fits other clients or other examples, or tears an image apart.
  """
  where = f"data.partition={_KIND}{path}"
  if len(clients) != num_clients:
    raise UserError(
      f"data.num_clients: expected {len(clients)}, the clients of {path}; got {num_clients}"
    )
  out: dict[str, Clients] = {}
  for split, examples in splits.items():
    row = {example.id: i for i, example in enumerate(examples)}
    owner: dict[str, str] = {}
    for name, parts in clients.items():
      for one in parts.get(split, []):
        if one not in row:
          raise UserError(
            f"{where}: expected ids of examples of {split}; {name} has {one!r:.60}, which the"
            " source has not. Use the manifest with the data that it was made of."
          )
        if one in owner:
          raise UserError(
            f"{where}: expected every example of {split} once; {one!r:.60} is with {owner[one]} and"
            f" with {name}. Remove one."
          )
        owner[one] = name
    if absent := [example.id for example in examples if example.id not in owner]:
      raise UserError(
        f"{where}: expected every example of {split} with some client; {len(absent)} are with none,"
        f" the first {absent[0]!r:.60}. Add them, or use the data that it was made of."
      )
    holder: dict[str, str] = {}
    for example in examples:
      if holder.setdefault(example.image, owner[example.id]) != owner[example.id]:
        raise UserError(
          f"{where}: expected all examples of an image with one client; those of"
          f" {example.image!r:.60} are with {holder[example.image]} and with {owner[example.id]}."
          " Move them together."
        )
    held: dict[str, list[int]] = {name: [] for name in clients}
    for i, example in enumerate(examples):
      held[owner[example.id]].append(i)
    out[split] = {name: np.array(rows, int) for name, rows in held.items()}
  return out


def _is_part(value: Any) -> bool:
  return isinstance(value, dict) and all(
    isinstance(part, list) and all(isinstance(one, str) for one in part) for part in value.values()
  )
