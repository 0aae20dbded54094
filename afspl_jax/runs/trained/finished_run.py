"""Reads a run folder: its settings, checkpoints and local leaves; a process may still use it."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flax import nnx

from afspl_jax.config.experiment import Experiment
from afspl_jax.config.fields import from_dict
from afspl_jax.config.nested_values import differences
from afspl_jax.errors import UserError
from afspl_jax.federation import strategies
from afspl_jax.federation.client.client_store import ClientStore
from afspl_jax.federation.privacy.budget import first_bound
from afspl_jax.federation.server.rounds import first_state, scored_params
from afspl_jax.models.captioner import module_leaves
from afspl_jax.models.huggingface.locate import MissingBackbone, locate
from afspl_jax.models.huggingface.weights import earlier_fingerprint, fingerprint
from afspl_jax.models.prompter.local import local_patterns, split_local
from afspl_jax.models.prompter.prompter import Prompter
from afspl_jax.runs.frozen import FrozenPair, make_prompter
from afspl_jax.runs.validate import validate
from afspl_jax.storage.checkpoints import Checkpoints
from afspl_jax.storage.json_text import parse_json
from afspl_jax.storage.pytrees import zeros_like
from afspl_jax.storage.versions import installed_version
from afspl_jax.types import Params

# Folders of whole models, next to that of the clients' states.
FINE_TUNED, COPIES = "finetuned", "ditto"


@dataclass(frozen=True)
class FinishedRun:
  """The settings of a run, from its config.json."""

  path: Path
  config: Experiment
  facts: dict[str, Any]  # hashes of the files that the run read

  @property
  def clients(self) -> Path:
    """The folder in which the clients on this machine keep their state."""
    local_net = self.path / "sites" / "clients"  # with --role=local-net
    return local_net if local_net.is_dir() else self.path / "clients"


def open_run(path: Path | str) -> FinishedRun:
  """Reads a run's config.json.

  Raises:
    UserError: not a run folder, or the run never started or was made by another version.
  """
  path = Path(path)
  file = path / "config.json"
  try:
    found = parse_json(file.read_bytes())
    config, facts = found["config"], found["facts"]
    if not isinstance(facts["backbones"], dict) or not isinstance(config, dict):
      raise TypeError("no settings")
  except (OSError, ValueError, KeyError, TypeError) as error:
    why = f"no {error} in config.json" if isinstance(error, KeyError) else error
    raise UserError(
      f"{path}: expected the folder of a run that started, with config.json; got: {why}"
    ) from error
  try:
    experiment = from_dict(config)
    validate(experiment)
  except UserError as error:
    versions = found.get("versions")
    made = versions.get("afspl_jax", "unknown") if isinstance(versions, dict) else "unknown"
    raise UserError(
      f"{file}: expected settings of afspl_jax {installed_version('afspl_jax')}; got settings of"
      f" {made}:"
      f" {error}. Use the version that made the run"
    ) from error
  return FinishedRun(path, experiment, facts)


def find_backbones(
  config: Experiment, hashes: Mapping[str, str], folders: Mapping[str, str]
) -> dict[str, Path]:
  """Finds the two backbones that a prompter was trained on.

  Args:
    config: gives their names.
    hashes: their hashes, of "clip" and "t5".
    folders: other folders for them; "" or absent means the one in the config.

  Returns:
    The folders of "clip" and "t5".

  Raises:
    UserError: one is missing or has another hash; the message names both.
  """
  found, errors = {}, []
  for kind in ("clip", "t5"):
    name = folders.get(kind) or getattr(config.backbone, kind)
    try:
      found[kind] = locate(name, kind)
    except MissingBackbone as error:
      message = str(error).replace(f"--config.backbone.{kind}=", f"--{kind}=")
      errors.append(f"{message}\n  The run used the one with hash {hashes.get(kind)}")
      continue
    actual, wanted = fingerprint(found[kind]), hashes.get(kind)
    if actual != wanted and earlier_fingerprint(found[kind]) != wanted:
      errors.append(
        f"{found[kind]}: expected the {kind} of the run, with hash {wanted}; got"
        f" {actual}. Give the correct folder: --{kind}=FOLDER"
      )
  if errors:
    raise UserError("\n".join(errors))
  return found


def abstract_prompter(config: Experiment, pair: FrozenPair) -> Prompter:
  """The structure of a prompter, without values and without the parts that only training needs.

  Raises:
    UserError: sizes do not fit each other.
  """
  return nnx.eval_shape(lambda: make_prompter(config, pair, contrast=False))


def find_round(run: FinishedRun, round: int | None = None) -> int:
  """Finds a round that has a checkpoint; fast, so it can run before models are loaded.

  Args:
    run: the run.
    round: the wanted round; by default the newest.

  Raises:
    UserError: there is no checkpoint, or none of this round.
  """
  with _checkpoints(run) as checkpoints:
    kept = checkpoints.rounds()
  if not kept or (round is not None and round not in kept):
    wanted = "a finished round" if round is None else f"a checkpoint of round {round}"
    held = f"rounds {', '.join(map(str, kept))}" if kept else "no checkpoint yet"
    raise UserError(f"{run.path}: expected {wanted}; got {held}")
  return kept[-1] if round is None else round


def load_shared_leaves(
  run: FinishedRun, template: Params, round: int | None = None
) -> tuple[int, Params]:
  """Loads the shared leaves that are scored after a round: the average, if the run keeps one.

  Args:
    run: the run.
    template: the shared leaves, or their shapes.
    round: a round with a checkpoint; by default the newest.

  Returns:
    The round and the leaves (NumPy).

  Raises:
    UserError: there is no checkpoint, or none of this round.
  """
  config, round = run.config, find_round(run, round)
  strategy = strategies.get_strategy(
    config.fed.strategy, config.data.num_clients - config.fed.newcomers
  )
  state = first_state(zeros_like(template), strategy, config.eval.ema)
  state |= first_bound(config.privacy)
  with _checkpoints(run) as checkpoints:
    restored = checkpoints.restore(state, round)
  assert restored is not None, "find_round found this round"
  return restored[0], scored_params(restored[1])


def load_local_leaves(clients: Path, site: str, round: int, template: Params) -> Params:
  """Loads the local leaves of a site after a round.

  Args:
    clients: the folder in which clients keep their state.
    site: the name of the site.
    round: the newest state up to this round is loaded.
    template: the local leaves, or their shapes.

  Raises:
    UserError: the site has no local leaves there, or the run has none at all.
  """
  if not template:
    raise UserError("--site: expected a run whose sites have local prompts; got one without")
  store = ClientStore(clients, read_only=True)
  state = store.load(site, round + 1, {"own": zeros_like(template)}, part=True)
  if state is None:
    known = ", ".join(store.sites()) or "no site"
    raise UserError(
      f"{clients}: expected the local prompt of {site!r} up to round {round}; got that of {known}."
      " It is on the machine where the site trained: give that run's folder with --own=RUN"
    )
  return state["own"]


def load_whole_model(run: FinishedRun, site: str, round: int, template: Params) -> Params | None:
  """Loads all leaves of a site's model, where it has one of its own.

  With `fed.ditto` that is its copy (federation/client/ditto.py); with `fed.finetune` its fine-tuned
  one, after the last round (runs/fine_tuning.py).

  Args:
    run: the run in which the site trained.
    site: the name of the site.
    round: the newest model up to this round is loaded.
    template: all leaves, or their shapes.

  Returns:
    The leaves; None where the site's model is the shared leaves with its local ones.

  Raises:
    UserError: the file is damaged.
  """
  fed, store = run.config.fed, ClientStore(run.clients, read_only=True)
  newest = round
  if fed.ditto:
    store = store.beside(COPIES)
  else:
    store, newest = store.beside(FINE_TUNED), chosen_number(run.config)
    if round != fed.rounds or store.newest(site) != newest:
      return None
  state = store.load(site, newest + 1, {"own": zeros_like(template)}, part=True)
  return None if state is None else state["own"]


def chosen_number(config: Experiment) -> int:
  """The round under which a fine-tuned model is kept: above all of its local rounds."""
  return config.fed.rounds + config.fed.finetune + 1


def leaf_shapes(config: Experiment, prompter: Prompter) -> tuple[Params, Params]:
  """Shapes of a prompter's leaves as (shared, local)."""
  return split_local(module_leaves(prompter), local_patterns(config.fed))


def require_same_data(run: Path, trained_on: Mapping[str, str], found: Mapping[str, str]) -> None:
  """Requires that the data have the same hashes as when the run was trained.

  Args:
    run: the run folder.
    trained_on: hashes of the run, by name.
    found: hashes of now, by name; some names may be absent.

  Raises:
    UserError: some differ; the message names them.
  """
  if changed := differences({name: trained_on.get(name) for name in found}, dict(found)):
    raise UserError(
      f"{run}: expected the data that the run was trained on; changed: {'; '.join(changed)}."
      " Scores on other examples do not belong to this run"
    )


@contextlib.contextmanager
def _checkpoints(run: FinishedRun) -> Iterator[Checkpoints]:
  folder = run.path / "checkpoints"
  if not folder.is_dir():
    raise UserError(
      f"{run.path}: expected a run with checkpoints; got none. A site has no checkpoints of the"
      " global model: get a file of `afspl export`, and use it with --site=NAME --own=RUN"
    )
  checkpoints = Checkpoints(folder, read_only=True)
  try:
    yield checkpoints
  finally:
    checkpoints.close()
