"""A run's folder, opened to be used or scored; a process may still be at work in it."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flax import nnx

from afspl_jax.config.experiment import Experiment, differences
from afspl_jax.config.fields import from_dict
from afspl_jax.errors import UserError
from afspl_jax.federation import strategies
from afspl_jax.federation.client.client_store import ClientStore
from afspl_jax.federation.privacy.budget import first_bound
from afspl_jax.federation.server.rounds import first_state, scored_params
from afspl_jax.models.captioner import leaves
from afspl_jax.models.huggingface.locate import MissingBackbone, locate
from afspl_jax.models.huggingface.weights import fingerprint
from afspl_jax.models.prompter.local import split
from afspl_jax.models.prompter.prompter import Prompter
from afspl_jax.runs.frozen import FrozenPair, make_prompter
from afspl_jax.runs.validate import check
from afspl_jax.storage.checkpoints import Checkpoints
from afspl_jax.storage.json_text import parse
from afspl_jax.storage.pytrees import zeros_like
from afspl_jax.storage.versions import installed_version
from afspl_jax.types import Params


@dataclass(frozen=True)
class FinishedRun:
  """What a run's config.json says."""

  path: Path
  config: Experiment
  facts: dict[str, Any]  # hashes of what the run read

  @property
  def clients(self) -> Path:
    """Where clients of this machine keep what is their own."""
    rehearsal = self.path / "sites" / "clients"  # of --role=local-net
    return rehearsal if rehearsal.is_dir() else self.path / "clients"


def open_run(path: Path | str) -> FinishedRun:
  """Reads a run's config.json.

  Raises:
    UserError: no run's folder, or that of a run which never began or is of another version.
  """
  path = Path(path)
  file = path / "config.json"
  try:
    found = parse(file.read_bytes())
    config, facts = found["config"], found["facts"]
    if not isinstance(facts["backbones"], dict) or not isinstance(config, dict):
      raise TypeError("no settings in it")
  except (OSError, ValueError, KeyError, TypeError) as error:
    why = f"no {error} in config.json" if isinstance(error, KeyError) else error
    raise UserError(
      f"{path}: expected the folder of a run that began, with config.json; got: {why}"
    ) from error
  try:
    experiment = from_dict(config)
    check(experiment)
  except UserError as error:
    versions = found.get("versions")
    made = versions.get("afspl_jax", "unknown") if isinstance(versions, dict) else "unknown"
    raise UserError(
      f"{file}: expected the settings of afspl_jax {installed_version('afspl_jax')}; got those of"
      f" {made}: {error}. Use the version that made the run"
    ) from error
  return FinishedRun(path, experiment, facts)


def find_pair(
  config: Experiment, prints: Mapping[str, str], given: Mapping[str, str]
) -> dict[str, Path]:
  """The folders of the two backbones that a prompter was trained on.

  Args:
    config: names them.
    prints: their hashes.
    given: where they lie instead, of "clip" and "t5"; "" or absent where nothing is said.

  Raises:
    UserError: one is missing, or is another than the prompter's; names both.
  """
  folders, faults = {}, []
  for kind in ("clip", "t5"):
    name = given.get(kind) or getattr(config.backbone, kind)
    try:
      folders[kind] = locate(name, kind)
    except MissingBackbone as error:
      fault = str(error).replace(f"--config.backbone.{kind}=", f"--{kind}=")
      faults.append(f"{fault}\n  It is the one with hash {prints.get(kind)}")
      continue
    found = fingerprint(folders[kind])
    if found != prints.get(kind):
      faults.append(
        f"{folders[kind]}: expected the {kind} of the run, with hash {prints.get(kind)}; got"
        f" {found}. Give the folder of the right one: --{kind}=FOLDER"
      )
  if faults:
    raise UserError("\n".join(faults))
  return folders


def outline(config: Experiment, pair: FrozenPair) -> Prompter:
  """A prompter of which only the structure is there, without what only training needs.

  Raises:
    UserError: sizes that do not fit.
  """
  return nnx.eval_shape(lambda: make_prompter(config, pair, contrast=False))


def find_round(run: FinishedRun, round: int | None = None) -> int:
  """A round whose checkpoint is there; quick, to be asked before models are loaded.

  Args:
    run: the run.
    round: the one that is wanted; by default the newest.

  Raises:
    UserError: no checkpoint, or none of this round.
  """
  with _checkpoints(run) as checkpoints:
    kept = checkpoints.rounds()
  if not kept or (round is not None and round not in kept):
    wanted = "a finished round" if round is None else f"a checkpoint of round {round}"
    held = f"rounds {', '.join(map(str, kept))}" if kept else "no checkpoint yet"
    raise UserError(f"{run.path}: expected {wanted}; got {held}")
  return kept[-1] if round is None else round


def shared_leaves(
  run: FinishedRun, template: Params, round: int | None = None
) -> tuple[int, Params]:
  """What was scored of the server's state after a round.

  Args:
    run: the run.
    template: the prompter's leaves that travel, or anything with their shapes.
    round: one that has a checkpoint; by default the newest.

  Returns:
    The round and the leaves (NumPy).

  Raises:
    UserError: no checkpoint, or none of this round.
  """
  config, round = run.config, find_round(run, round)
  strategy = strategies.get(config.fed.strategy, config.data.num_clients - config.fed.newcomers)
  state = first_state(zeros_like(template), strategy, config.eval.ema)
  state |= first_bound(config.privacy)
  with _checkpoints(run) as checkpoints:
    restored = checkpoints.restore(state, round)
  assert restored is not None, "a round that is kept"
  return restored[0], scored_params(restored[1])


def own_leaves(clients: Path, site: str, round: int, template: Params) -> Params:
  """What a site used of its own after a round.

  Args:
    clients: folder in which sites keep what is their own.
    site: its name.
    round: the newest state that is not of a later one is taken.
    template: the leaves, or anything with their shapes.

  Raises:
    UserError: the site has nothing of its own there, or never has in such a run.
  """
  if not template:
    raise UserError("--site: expected a run whose sites have prompts of their own; got one without")
  store = ClientStore(clients, read_only=True)
  state = store.load(site, round + 1, {"own": zeros_like(template)}, part=True)
  if state is None:
    known = ", ".join(store.sites()) or "nobody"
    raise UserError(
      f"{clients}: expected what {site!r} kept of its own up to round {round}; got that of {known}."
      " A site's prompt lies where the site trained: say where with --own=RUN"
    )
  return state["own"]


def used_leaves(config: Experiment, prompter: Prompter) -> tuple[Params, Params]:
  """Shapes of a prompter's leaves as (what travels, what stays)."""
  return split(leaves(prompter), config.fed.share)


def agree(run: Path, trained_on: Mapping[str, str], found: Mapping[str, str]) -> None:
  """Compares hashes of what is found now with those of what a run was trained on.

  Args:
    run: its folder.
    trained_on: by name.
    found: by name, perhaps fewer.

  Raises:
    UserError: some differ; one line that names them.
  """
  if changed := differences({name: trained_on.get(name) for name in found}, dict(found)):
    raise UserError(
      f"{run}: expected the data that the run was trained on; changed: {'; '.join(changed)}."
      " Scores of other examples are not those of this run"
    )


@contextlib.contextmanager
def _checkpoints(run: FinishedRun) -> Iterator[Checkpoints]:
  folder = run.path / "checkpoints"
  if not folder.is_dir():
    raise UserError(
      f"{run.path}: expected a run with checkpoints; got none. A site keeps none of what the server"
      " averages: ask for a file of `afspl export`, and use it with --site=NAME --own=RUN"
    )
  checkpoints = Checkpoints(folder, read_only=True)
  try:
    yield checkpoints
  finally:
    checkpoints.close()
