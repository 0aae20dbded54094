"""Reads the files of a run for a page, while it is running, after it ended, or before it starts."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from afspl_jax.config.experiment import Experiment
from afspl_jax.config.fields import known_fields, leaves
from afspl_jax.errors import UserError
from afspl_jax.reporting.status import JsonLine, run_state
from afspl_jax.storage.json_shape import JsonShape, find_mismatch
from afspl_jax.storage.json_text import parse_json
from afspl_jax.storage.run_lines import CLIENTS, METRICS, read_clients, read_lines, read_metrics

PARTITION, SITES, FINAL = "partition.json", "sites.jsonl", "test.jsonl"
_REQUIRED = (  # settings that a page needs
  "seed",
  "data.source",
  "data.partition",
  "data.num_clients",
  "fed.rounds",
  "fed.strategy",
  "backbone.clip",
  "backbone.t5",
)

_GROUPS = {name.split(".")[0] for name, _ in known_fields(Experiment()) if "." in name}
_SITE: JsonShape = {"client": str, "*": (float, None)}
_PARTITION: JsonShape = {
  "partition?": str,
  "clients?": {"*": {"*": list}},
  "labels?": {"*": {"*": int}},
}
_SETTING: JsonShape = (float, str, bool, [float])
_CONFIG: JsonShape = {
  "config": {"*": _SETTING} | {f"{group}?": {"*": _SETTING} for group in _GROUPS},
  "facts?": {
    "*": (str, float, None, list, {"*": object}),
    "data?": {"*": str},
    "backbones?": {"*": str},
  },
  "versions?": {"*": str},
  "places?": [{"*": object}],
}


@dataclass(frozen=True)
class RunFiles:
  """The files of a run, except its predictions, which are read when they are needed."""

  name: str  # unique on a page
  path: Path
  state: str  # running | finished | stopped | not started
  config: dict[str, Any] = field(default_factory=dict)  # {}: nothing is written yet
  facts: dict[str, Any] = field(default_factory=dict)
  versions: dict[str, str] = field(default_factory=dict)
  places: list[dict[str, Any]] = field(default_factory=list)
  metrics: Sequence[JsonLine] = field(default_factory=list)
  clients: Sequence[JsonLine] = field(default_factory=list)
  sites: Sequence[JsonLine] = field(default_factory=list)
  partition: dict[str, Any] = field(default_factory=dict)

  def of(self, split: str) -> list[JsonLine]:
    """The lines of metrics.jsonl about a split, by round."""
    return [line for line in self.metrics if line["split"] == split]

  def last(self, split: str) -> JsonLine | None:
    """The newest line about a split."""
    return next((line for line in reversed(self.metrics) if line["split"] == split), None)

  @property
  def round(self) -> int:
    """The last finished round."""
    return max((line["round"] for line in self.metrics), default=0)

  def rounds(self) -> dict[int, Path]:
    """Predictions files on the validation split by round, without unfinished ones."""
    files = sorted((self.path / "predictions").glob("round_*.jsonl"))
    scored = {line["round"] for line in self.of("val")}
    numbers = {file.stem.removeprefix("round_"): file for file in files}
    found = {int(number): file for number, file in numbers.items() if number.isdecimal()}
    return {round: file for round, file in sorted(found.items()) if round in scored}

  def predictions(self) -> tuple[str, Path] | None:
    """The newest predictions of the global model: the split, and the file."""
    final = self.path / "predictions" / FINAL
    if final.exists():
      return "test", final
    rounds = self.rounds()
    return ("validation", rounds[max(rounds)]) if rounds else None


def read_run(path: Path, name: str = "") -> RunFiles:
  """Reads a run folder; a missing file counts as empty.

  Args:
    path: the run folder.
    name: the name on the page; default that of the folder.

  Raises:
    UserError: a file is damaged or does not belong to a run.
  """
  name = name or path.resolve().name
  found = _json(path / "config.json")
  if not found:
    return RunFiles(name, path, "not started")
  if not isinstance(found.get("config"), dict):
    raise UserError(f"{path / 'config.json'}: expected a run's config; got {str(found)[:40]!r}")
  _expect(path / "config.json", found, _CONFIG)
  if absent := [name for name in _REQUIRED if name not in leaves(found["config"])]:
    raise UserError(
      f"{path / 'config.json'}: expected a run's config; got one without {', '.join(absent)}"
    )
  metrics = read_metrics(path)
  sites = read_lines(path / SITES)
  for number, line in enumerate(sites, start=1):
    _expect(f"{path / SITES}:{number}", line, _SITE)
  partition = _json(path / PARTITION)
  _expect(path / PARTITION, partition, _PARTITION)
  return RunFiles(
    name=name,
    path=path,
    state=run_state(path, metrics),
    config=found["config"],
    facts=found.get("facts", {}),
    versions=found.get("versions", {}),
    places=found.get("places", []),
    metrics=metrics,
    clients=read_clients(path),
    sites=sites,
    partition=partition,
  )


def read_runs(paths: Sequence[Path]) -> list[RunFiles]:
  """Reads several runs; the name of each is the shortest unique end of its path.

  Raises:
    UserError: not a run folder, the same folder twice, or a damaged file.
  """
  resolved = [path.resolve() for path in paths]
  if len(set(resolved)) < len(resolved):
    raise UserError("expected different runs; got the same one twice")
  runs = []
  for path, own in zip(paths, resolved, strict=True):
    depth = 1
    while any(other != own and other.parts[-depth:] == own.parts[-depth:] for other in resolved):
      depth += 1
    run = read_run(path, "/".join(own.parts[-depth:]))
    if not run.config:
      raise UserError(f"{path}: expected a run folder with config.json; got none")
    runs.append(run)
  return runs


def files_stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
  """Names, times and sizes of a page's files: equal as long as none of them has changed."""
  names = ["config.json", METRICS, CLIENTS, SITES, PARTITION]
  files = [path / name for name in names] + sorted((path / "predictions").glob("*.jsonl"))
  return tuple(entry for file in files if (entry := file_stamp(file)))


def file_stamp(file: Path) -> tuple[str, int, int] | None:
  """A file's name, modification time and size; None if it does not exist."""
  try:
    found = os.stat(file)
  except FileNotFoundError:
    return None
  return str(file), found.st_mtime_ns, found.st_size


def _expect(where: Path | str, value: dict[str, Any], form: JsonShape) -> None:
  if error := find_mismatch(value, form):
    raise UserError(f"{where}: expected the form that a run writes; got a value where {error}")


def _json(file: Path) -> dict[str, Any]:
  try:
    found = parse_json(file.read_bytes())
  except FileNotFoundError:
    return {}
  except (OSError, ValueError) as error:
    raise UserError(f"{file}: expected a file of a run; got: {error}") from error
  if not isinstance(found, dict):
    raise UserError(f"{file}: expected a JSON object; got {str(found)[:40]!r}")
  return found
