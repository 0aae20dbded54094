"""Opens a trained prompter with its frozen models, from a run folder or an exported file."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from afspl_jax.config.experiment import Experiment, to_dict
from afspl_jax.config.fields import changed
from afspl_jax.config.nested_values import differences
from afspl_jax.errors import UserError
from afspl_jax.evaluation.generate import decoding_settings
from afspl_jax.evaluation.scores import ANSWERS
from afspl_jax.models.captioner import module_leaves
from afspl_jax.models.huggingface import hub
from afspl_jax.models.huggingface.weight_forms import SAFETENSORS
from afspl_jax.models.prompter.local import join_local, split_like
from afspl_jax.models.prompter.prompter import Prompter
from afspl_jax.runs.frozen import FrozenPair, load_pair, make_prompter
from afspl_jax.runs.trained.finished_run import (
  FinishedRun,
  abstract_prompter,
  find_backbones,
  find_round,
  leaf_shapes,
  load_local_leaves,
  load_shared_leaves,
  load_whole_model,
  open_run,
)
from afspl_jax.runs.trained.prompter_file import (
  PrompterInfo,
  read_prompter_info,
  read_prompter_leaves,
  write_prompter,
)
from afspl_jax.storage.pytrees import zeros_like
from afspl_jax.storage.run_lines import METRICS, read_lines
from afspl_jax.types import Params

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_SCORES = ("loss", "cider", "bleu4", "rouge_l", *ANSWERS)


class TrainedPrompter(NamedTuple):
  """A trained prompter, and everything that is needed to use it."""

  config: Experiment  # how it was trained, and how texts are generated
  pair: FrozenPair
  prompter: Prompter  # only its structure
  shared: Params  # the shared leaves (NumPy)
  local: Params  # the local leaves of `site`; without a site the untrained ones
  round: int  # the round after which the leaves were saved
  site: str  # the site whose local prompt is used; "": none
  scores: dict[str, dict[str, float]]  # of the global model after this round, by split


def open_trained_prompter(
  path: Path,
  round: int | None = None,
  site: str = "",
  own: Path | str = "",
  folders: Mapping[str, str] | None = None,
  generation: Mapping[str, Any] | None = None,
) -> TrainedPrompter:
  """Opens a trained prompter.

  Args:
    path: the folder of a finished or running run, a file or folder of `afspl export`, or the name
      of such a folder's repository on the Hugging Face hub.
    round: a round with a checkpoint; by default the newest.
    site: the site whose local prompt is used; by default the one in the file, if any.
    own: the run folder at that site, if it is not `path`.
    folders: other folders of "clip" and "t5" than those in the run's config.
    generation: changes to fields of `eval`.

  Raises:
    UserError: something is missing or damaged, or the parts do not belong together.
  """
  path = _found(path)
  if path.is_file():
    info = read_prompter_info(path)
    _require_in_file(path, info, round, site, own)
  else:
    run = open_run(path)
    find_round(run, round)
    info = PrompterInfo(run.config, run.facts["backbones"], -1)
  config = changed(info.config, {f"eval.{n}": value for n, value in (generation or {}).items()})
  decoding_settings(config.eval)
  if config.fed.share == "none" and not (site or info.site):
    raise UserError(f"{path}: expected --site=NAME, because its sites share nothing; got no site")
  site_run = open_run(own or path) if site and site != info.site else None
  if site_run:
    _require_same_federation(path, info, site_run)
  # Everything that is fast to check was checked; loading takes long.
  found = find_backbones(config, info.backbones, folders or {})
  pair = load_pair(config, found, info.backbones)
  prompter = abstract_prompter(config, pair)
  shapes, local_shapes = leaf_shapes(config, prompter)
  if path.is_file():
    round, scores = info.round, info.scores
    shared, local = read_prompter_leaves(path, info, shapes, local_shapes)
  else:
    round, shared = load_shared_leaves(run, shapes, round)
    scores, local = _scores(path, round), zeros_like(local_shapes)
  if config.fed.local_leaves and not (site or info.site):  # the global model uses them
    untrained = jax.device_get(module_leaves(make_prompter(config, pair, contrast=False)))
    local = split_like(untrained, shapes)[1]
  if site_run:
    whole = load_whole_model(site_run, site, round, join_local(shapes, local_shapes))
    if whole:
      shared, local = split_like(whole, shapes)
    else:
      local = load_local_leaves(site_run.clients, site, round, local_shapes)
  return TrainedPrompter(config, pair, prompter, shared, local, round, site or info.site, scores)


def export_prompter(trained: TrainedPrompter, file: Path) -> PrompterInfo:
  """Writes a prompter as one file, including the local leaves if it has a site.

  Raises:
    UserError: the file cannot be written.
  """
  info = PrompterInfo(
    trained.config, trained.pair.fingerprints, trained.round, trained.site, trained.scores
  )
  return write_prompter(file, info, trained.shared, trained.local if trained.site else {})


def _found(path: Path) -> Path:
  """The run's folder, or the prompter's file, that a path or the name of a repository means."""
  if (path / SAFETENSORS.single).is_file():
    return path / SAFETENSORS.single
  # Not a run that is misspelt: a name is asked for only where its first part is no folder here.
  if not path.exists() and _REPOSITORY.fullmatch(str(path)) and not path.parent.exists():
    try:
      return hub.fetch_file(str(path), SAFETENSORS.single)
    except hub.Unreachable as error:
      raise UserError(
        f"{path}: expected the folder of a run that started, a file of `afspl export`, or a"
        f" repository of the hub; got no such folder or file, and {error}"
      ) from error
  return path


def _require_in_file(
  file: Path, info: PrompterInfo, round: int | None, site: str, own: Path | str
) -> None:
  """Rejects a request for another round or site than those in a file."""
  if round not in (None, info.round):
    raise UserError(f"{file}: expected --round={info.round}, the round of the file; got {round}")
  if info.site and site not in ("", info.site):
    raise UserError(f"{file}: expected --site={info.site}, the site of the file; got {site}")
  if site and not info.site and not own:
    raise UserError(
      f"--site={site}: expected --own=RUN, the run folder of that site, with a file; got none"
    )


def _require_same_federation(path: Path, info: PrompterInfo, site_run: FinishedRun) -> None:
  """Rejects local leaves that were trained with another prompter."""

  def terms(config: Experiment, hashes: Mapping[str, Any]) -> dict[str, Any]:
    found = {"prompter": to_dict(config)["prompter"], "seed": config.seed}
    shares = {"fed.share": config.fed.share, "fed.local_leaves": config.fed.local_leaves}
    return found | shares | {"backbones": dict(hashes)}

  expected = terms(info.config, info.backbones)
  if differ := differences(expected, terms(site_run.config, site_run.facts["backbones"])):
    raise UserError(
      f"--own={site_run.path}: expected the run of a site in the federation of {path}; got one"
      f" that differs: {'; '.join(differ)}"
    )


def _scores(run: Path, round: int) -> dict[str, dict[str, float]]:
  """The scores of the global model after a round, from metrics.jsonl."""
  return {
    line["split"]: {name: line[name] for name in _SCORES if line.get(name) is not None}
    for line in read_lines(run / METRICS)
    if line["round"] == round and line["split"] in ("val", "test")
  }
