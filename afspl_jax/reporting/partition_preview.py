"""Previews a config's partition without a run: the size and the labels of each client."""

from collections import Counter
from pathlib import Path
from typing import Any

from afspl_jax.config.experiment import Experiment
from afspl_jax.data import manifest
from afspl_jax.data.partition import PICTURE, check_split_images, partition, save_partition
from afspl_jax.data.sources import open_sources
from afspl_jax.data.splits import SPLITS
from afspl_jax.errors import UserError

_WIDTHS = (8, 10, 8)  # of the columns of splits
_ROWS = 40  # of the table; with more clients, it shows the largest and the smallest


def preview_partition(config: Experiment, folder: Path) -> str:
  """Partitions a config's data over its clients, and writes manifest and plot into a folder.

  Args:
    config: the experiment; only its data and seed matter.
    folder: any folder but a run folder.

  Returns:
    A table for the terminal.

  Raises:
    UserError: the data are missing or do not fit the partition, or the folder is a run folder.
  """
  if (folder / "config.json").exists():
    raise UserError(
      f"{folder}: expected a folder that is not a run folder; got one. The partition of that run is"
      f" in {folder / manifest.FILE}. Choose another --workdir for this preview"
    )
  data = config.data
  sources = open_sources(data, SPLITS)
  examples = {split: [part[i] for i in range(len(part))] for split, part in sources.items()}
  check_split_images(examples)
  clients = partition(examples, data, config.seed)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    fingerprints = {split: part.fingerprint for split, part in sources.items()}
    described = save_partition(folder, examples, clients, data, config.seed, fingerprints)
  except OSError as error:
    raise UserError(
      f"{folder}: expected a folder that can be written; got: {error}. Choose another --workdir"
    ) from error
  plot = folder / PICTURE
  picture = str(plot) if plot.exists() else "none: it needs matplotlib (the extra plots)"
  return "\n".join(
    [*_table(described), f"manifest: {folder / manifest.FILE}", f"picture: {picture}"]
  )


def _table(described: dict[str, Any]) -> list[str]:
  sizes = {name: [len(parts[s]) for s in SPLITS] for name, parts in described["clients"].items()}
  names = list(sizes)
  if len(names) > _ROWS:
    names = sorted(names, key=lambda name: -sizes[name][0])
    names = [*names[: _ROWS // 2], *names[-_ROWS // 2 :]]
  width = max(map(len, [*names, "client"]))
  head = " ".join(f"{split:>{w}}" for split, w in zip(SPLITS, _WIDTHS, strict=True))
  lines = [f"{'client':{width}} {head}  labels of train"]
  for name in names:
    here = " ".join(f"{n:>{w},}" for n, w in zip(sizes[name], _WIDTHS, strict=True))
    found = Counter(described["labels"][name])
    most = ", ".join(f"{label} {count:,}" for label, count in found.most_common(4))
    more = f" and {len(found) - 4} more" if len(found) > 4 else ""
    lines.append(f"{name:{width}} {here}  {most}{more}")
  if len(sizes) > len(names):
    lines.insert(1 + _ROWS // 2, f"... {len(sizes) - len(names):,} clients between these ...")
  train = sorted(size[0] for size in sizes.values())
  lines.append(
    f"{len(sizes):,} clients by {described['partition']}; examples of train: {train[0]:,} to"
    f" {train[-1]:,}, median {train[len(train) // 2]:,}"
    + (f" (data.max_examples={cap})" if (cap := described.get("max_examples")) else "")
  )
  return lines
