"""What a run's folder says of it, whether the run is at work, ended, or has not begun."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from afspl_jax.config.experiment import Experiment
from afspl_jax.config.fields import known_fields, leaves
from afspl_jax.errors import UserError
from afspl_jax.reporting.status import Line, state
from afspl_jax.storage.json_shape import JsonShape, find_mismatch
from afspl_jax.storage.json_text import parse
from afspl_jax.storage.run_lines import CLIENTS, METRICS, read_clients, read_lines, read_metrics

PARTITION, SITES, FINAL = "partition.json", "sites.jsonl", "test.jsonl"
_NAMED = (  # settings that a run is described by
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
class Run:
  """The files of a run, but for its predictions, which are read when they are needed."""

  name: str  # tells it from the others of a page
  path: Path
  state: str  # running | finished | stopped | not started
  config: dict[str, Any] = field(default_factory=dict)  # {}: nothing was written yet
  facts: dict[str, Any] = field(default_factory=dict)
  versions: dict[str, str] = field(default_factory=dict)
  places: list[dict[str, Any]] = field(default_factory=list)
  metrics: Sequence[Line] = field(default_factory=list)
  clients: Sequence[Line] = field(default_factory=list)
  sites: Sequence[Line] = field(default_factory=list)
  partition: dict[str, Any] = field(default_factory=dict)

  def of(self, split: str) -> list[Line]:
    """The lines of metrics.jsonl about a split, by round."""
    return [line for line in self.metrics if line["split"] == split]

  def last(self, split: str) -> Line | None:
    """The newest line about a split."""
    return next((line for line in reversed(self.metrics) if line["split"] == split), None)

  @property
  def round(self) -> int:
    """The last finished round."""
    return max((line["round"] for line in self.metrics), default=0)

  def rounds(self) -> dict[int, Path]:
    """Files of predictions on the validation split by their round, those that are whole."""
    files = sorted((self.path / "predictions").glob("round_*.jsonl"))
    scored = {line["round"] for line in self.of("val")}
    numbers = {file.stem.removeprefix("round_"): file for file in files}
    found = {int(number): file for number, file in numbers.items() if number.isdecimal()}
    return {round: file for round, file in sorted(found.items()) if round in scored}

  def predictions(self) -> tuple[str, Path] | None:
    """The newest file of predictions by the global prompter, after the split it is about."""
    final = self.path / "predictions" / FINAL
    if final.exists():
      return "test", final
    rounds = self.rounds()
    return ("validation", rounds[max(rounds)]) if rounds else None


def read(path: Path, name: str = "") -> Run:
  """Reads a run's folder; a file that is not there yet counts as empty.

  Args:
    path: the folder.
    name: for the reader; default that of the folder.

  Raises:
    UserError: a damaged file, or a folder with another's files.
  """
  name = name or path.resolve().name
  found = _json(path / "config.json")
  if not found:
    return Run(name, path, "not started")
  if not isinstance(found.get("config"), dict):
    raise UserError(f"{path / 'config.json'}: expected a run's config; got {str(found)[:40]!r}")
  _expect(path / "config.json", found, _CONFIG)
  if absent := [name for name in _NAMED if name not in leaves(found["config"])]:
    raise UserError(
      f"{path / 'config.json'}: expected a run's config; got one without {', '.join(absent)}"
    )
  metrics = read_metrics(path)
  sites = read_lines(path / SITES)
  for number, line in enumerate(sites, start=1):
    _expect(f"{path / SITES}:{number}", line, _SITE)
  partition = _json(path / PARTITION)
  _expect(path / PARTITION, partition, _PARTITION)
  return Run(
    name=name,
    path=path,
    state=state(path, metrics),
    config=found["config"],
    facts=found.get("facts", {}),
    versions=found.get("versions", {}),
    places=found.get("places", []),
    metrics=metrics,
    clients=read_clients(path),
    sites=sites,
    partition=partition,
  )


def read_all(paths: Sequence[Path]) -> list[Run]:
  """Reads several runs, each under the shortest end of its path that no other has.

  Raises:
    UserError: not a run's folder, the same one twice, or a damaged file.
  """
  whole = [path.resolve() for path in paths]
  if len(set(whole)) < len(whole):
    raise UserError("expected every run once; got one twice")
  runs = []
  for path, own in zip(paths, whole, strict=True):
    depth = 1
    while any(other != own and other.parts[-depth:] == own.parts[-depth:] for other in whole):
      depth += 1
    run = read(path, "/".join(own.parts[-depth:]))
    if not run.config:
      raise UserError(f"{path}: expected a run's folder with config.json; got none")
    runs.append(run)
  return runs


def stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
  """Equal as long as no file that a page is made of has changed: names, times and sizes."""
  names = ["config.json", METRICS, CLIENTS, SITES, PARTITION]
  files = [path / name for name in names] + sorted((path / "predictions").glob("*.jsonl"))
  return tuple(entry for file in files if (entry := file_stamp(file)))


def file_stamp(file: Path) -> tuple[str, int, int] | None:
  """A file's name, time of change and size; None if it is not there."""
  try:
    found = os.stat(file)
  except FileNotFoundError:
    return None
  return str(file), found.st_mtime_ns, found.st_size


def _expect(where: Path | str, value: dict[str, Any], form: JsonShape) -> None:
  if fault := find_mismatch(value, form):
    raise UserError(f"{where}: expected what a run writes; got it where {fault}")


def _json(file: Path) -> dict[str, Any]:
  try:
    found = parse(file.read_bytes())
  except FileNotFoundError:
    return {}
  except (OSError, ValueError) as error:
    raise UserError(f"{file}: expected a file of a run; got: {error}") from error
  if not isinstance(found, dict):
    raise UserError(f"{file}: expected a JSON object; got {str(found)[:40]!r}")
  return found
