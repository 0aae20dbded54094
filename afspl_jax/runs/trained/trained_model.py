"""A trained prompter with its two frozen models, from a run's folder or from an exported file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from afspl_jax.config.experiment import Experiment, differences, to_dict
from afspl_jax.config.fields import changed
from afspl_jax.errors import UserError
from afspl_jax.evaluation.generate import decoding
from afspl_jax.models.prompter.prompter import Prompter
from afspl_jax.runs.frozen import FrozenPair, load_pair
from afspl_jax.runs.trained import prompter_file
from afspl_jax.runs.trained.finished_run import (
  FinishedRun,
  find_pair,
  find_round,
  open_run,
  outline,
  own_leaves,
  shared_leaves,
  used_leaves,
)
from afspl_jax.runs.trained.prompter_file import Described
from afspl_jax.storage.pytrees import zeros_like
from afspl_jax.storage.run_lines import METRICS, read_lines
from afspl_jax.types import Params

_SCORES = ("loss", "cider", "bleu4", "rouge_l", "vqa_accuracy", "exact_match")


class Trained(NamedTuple):
  """All that is needed to use a prompter."""

  config: Experiment  # how it was trained, and how texts are generated
  pair: FrozenPair
  prompter: Prompter  # its structure alone
  shared: Params  # the leaves that travel (NumPy)
  own: Params  # those of `site`; zeros, which nothing uses, if there is none
  round: int  # after which they were taken
  site: str  # whose own prompt is used; "": nobody's
  scores: dict[str, dict[str, float]]  # after this round, by split


def open_trained(
  path: Path,
  round: int | None = None,
  site: str = "",
  own: Path | str = "",
  folders: Mapping[str, str] | None = None,
  generation: Mapping[str, Any] | None = None,
) -> Trained:
  """Opens a trained prompter.

  Args:
    path: the folder of a finished or running run, or a file of `export`.
    round: one whose checkpoint is kept; by default the newest.
    site: whose own prompt is used; by default that in the file, else none.
    own: the run's folder at that site, if it is not `path`.
    folders: of "clip" and "t5", where they are not those that the run names.
    generation: fields of `eval` that are to be others than the run's.

  Raises:
    UserError: something is missing, damaged, or does not belong together.
  """
  if path.is_file():
    said = prompter_file.describe(path)
    _check_asked(path, said, round, site, own)
  else:
    run = open_run(path)
    find_round(run, round)
    said = Described(run.config, run.facts["backbones"], -1)
  config = changed(said.config, {f"eval.{n}": value for n, value in (generation or {}).items()})
  decoding(config.eval)
  if config.fed.share == "none" and not (site or said.site):
    raise UserError(f"{path}: its sites share nothing; name one of them: --site=NAME")
  at = open_run(own or path) if site and site != said.site else None  # where its own prompt lies
  if at:
    _check_same(path, said, at)
  # All that can be seen at once has been; this takes long.
  found = find_pair(config, said.backbones, folders or {})
  pair = load_pair(config, found, said.backbones)
  prompter = outline(config, pair)
  shapes, own_shapes = used_leaves(config, prompter)
  if path.is_file():
    round, scores = said.round, said.scores
    shared, mine = prompter_file.read(path, said, shapes, own_shapes)
  else:
    round, shared = shared_leaves(run, shapes, round)
    scores, mine = _scores(path, round), zeros_like(own_shapes)
  if at:
    mine = own_leaves(at.clients, site, round, own_shapes)
  return Trained(config, pair, prompter, shared, mine, round, site or said.site, scores)


def export(trained: Trained, file: Path) -> Described:
  """Writes a prompter as one file, with its site's own leaves if it has a site.

  Raises:
    UserError: the file cannot be written.
  """
  described = Described(
    trained.config, trained.pair.fingerprints, trained.round, trained.site, trained.scores
  )
  own = trained.own if trained.site else {}
  return prompter_file.write(file, described, trained.shared, own)


def _check_asked(
  file: Path, said: Described, round: int | None, site: str, own: Path | str
) -> None:
  """Refuses what a file has not got."""
  if round not in (None, said.round):
    raise UserError(f"{file}: expected --round={said.round}, which it is of; got {round}")
  if said.site and site not in ("", said.site):
    raise UserError(f"{file}: expected --site={said.site}, whose prompt it holds; got {site}")
  if site and not said.site and not own:
    raise UserError(f"--site={site}: expected its run's folder beside a file; got no --own=RUN")


def _check_same(path: Path, said: Described, at: FinishedRun) -> None:
  """Refuses a site's own prompt that was trained beside another prompter than this."""

  def terms(config: Experiment, prints: Mapping[str, Any]) -> dict[str, Any]:
    found = {"prompter": to_dict(config)["prompter"], "seed": config.seed}
    return found | {"fed.share": config.fed.share, "backbones": dict(prints)}

  wanted = terms(said.config, said.backbones)
  if differ := differences(wanted, terms(at.config, at.facts["backbones"])):
    raise UserError(
      f"--own={at.path}: expected the run of a site in the federation of {path}; got one that"
      f" differs: {'; '.join(differ)}"
    )


def _scores(run: Path, round: int) -> dict[str, dict[str, float]]:
  """What metrics.jsonl says of the global prompter after a round."""
  return {
    line["split"]: {name: line[name] for name in _SCORES if line.get(name) is not None}
    for line in read_lines(run / METRICS)
    if line["round"] == round and line["split"] in ("val", "test")
  }
