"""A small experiment in this process, recorded with all of its messages."""

import functools
from dataclasses import dataclass, field
from pathlib import Path

import orbax.checkpoint as ocp
import pytest
from flwr.app import Message
from tqdm import tqdm

from afspl_jax.config.experiment import Experiment
from afspl_jax.config.fields import changed
from afspl_jax.federation.server import server_app
from afspl_jax.federation.transport.local_grid import LocalGrid
from afspl_jax.runs import run
from afspl_jax.runs.prepare import Setup
from afspl_jax.storage.run_lines import read_lines
from afspl_jax.types import Params

FIELDS = {
  "data.target_length": 12,
  "prompter.tokens": 4,
  "prompter.pool": 3,
  "prompter.k_max": 2,
  "optim.batch_size": 4,
  "optim.local_steps": 2,
  "fed.rounds": 3,
  "eval.every": 3,
  "optim.warmup_rounds": 1.0,
  "optim.weight_decay": 0.0,
  "prompter.routing": "none",
  "eval.val_examples": 8,
  "eval.batch_size": 16,
  "eval.max_tokens": 6,
  "eval.common_examples": 12,
}


@dataclass(frozen=True)
class Recorded:
  """A finished run."""

  config: Experiment
  path: Path
  setup: Setup
  sent: list[Message] = field(default_factory=list)  # to sites, in order
  replies: list[Message] = field(default_factory=list)
  bytes_up: list[int] = field(default_factory=list)  # counted bytes of each reply

  def checkpoint(self, round: int) -> Params:
    """The server's state after a round."""
    return ocp.PyTreeCheckpointer().restore(self.path / "checkpoints" / str(round) / "state")

  def lines(self, name: str) -> list[dict]:
    return read_lines(self.path / name)

  def line(self, split: str) -> dict:
    (line,) = [line for line in self.lines("metrics.jsonl") if line["split"] == split]
    return line


@functools.cache
def recorded_run(path: Path, checkpoints, shapes_dir: Path, **fields) -> Recorded:
  """Runs the experiment of FIELDS and `fields`; equal arguments share one run.

  Args:
    path: the run folder.
    checkpoints: folders of CLIP and T5.
    shapes_dir: the data.
    **fields: settings by dotted name.
  """
  small = FIELDS | fields
  small |= {"backbone.clip": str(checkpoints.clip), "backbone.t5": str(checkpoints.t5)}
  config = changed(Experiment(), small | {"data.dir": str(shapes_dir)})
  found: dict[str, list] = {"setup": [], "sent": [], "replies": [], "bytes_up": []}

  class Recording(LocalGrid):
    def push_messages(self, messages):
      found["sent"] += messages
      return super().push_messages(messages)

    def pull_messages(self, message_ids):
      replies = super().pull_messages(message_ids)
      found["replies"] += replies
      ids = (reply.metadata.reply_to_message_id for reply in replies)
      found["bytes_up"] += [self.transfers[i].up for i in ids]
      return replies

  prepare_setup = run.prepare_setup

  def remembered(*args):
    found["setup"].append(prepare_setup(*args))
    return found["setup"][0]

  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XDG_CACHE_HOME", str(path.parent / "features"))
    patch.setattr(server_app, "LocalGrid", Recording)
    patch.setattr(run, "prepare_setup", remembered)
    silent = functools.partial(tqdm, disable=True)
    run.run_experiment(config, path, progress=silent, say=lambda text: None)
  (setup,) = found.pop("setup")
  return Recorded(config, path, setup, **found)


def rich_run(base: Path, checkpoints, shapes_dir: Path) -> Recorded:
  """A federation with newcomers, sparse updates, the contrastive loss and an average model."""
  fields = {
    "fed.newcomers": 2,
    "fed.clients_per_round": 4,
    "optim.contrast": 0.1,
    "uplink.select": "ratio",
    "uplink.ratio": 0.5,
    "eval.ema": 0.6,
  }
  return recorded_run(base / "rich", checkpoints, shapes_dir, **fields)


def routed_run(base: Path, checkpoints, shapes_dir: Path) -> Recorded:
  """A federation that routes images to sites, with fewer prompts of sites than sites."""
  fields = {
    "prompter.routing": "auto",
    "prompter.site_prompts": 6,
    "uplink.select": "dense",
    "optim.weight_decay": 0.1,
  }
  return recorded_run(base / "routed", checkpoints, shapes_dir, **fields)


def scaffold_run(base: Path, checkpoints, shapes_dir: Path) -> Recorded:
  """A federation with control variates, in which sites take part more than once."""
  fields = {
    "fed.strategy": "scaffold",
    "fed.newcomers": 2,
    "fed.clients_per_round": 4,
    "uplink.select": "dense",
  }
  return recorded_run(base / "scaffold", checkpoints, shapes_dir, **fields)
