"""Every setting of an experiment: one field a line, with its unit and meaning.

An experiment is a file in `configs/` whose `get_config()` returns an `Experiment`.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from afspl_jax.errors import UserError


@dataclass
class Data:
  """Where the examples come from and how they are split over clients."""

  source: str = "shapes"  # a name in data/sources.py
  dir: str = ""  # where the data set lies or is prepared; "" = tensorflow-datasets' default
  partition: str = "natural"  # natural | iid | dirichlet | task
  dirichlet_alpha: float = 0.5  # concentration; small = clients differ more
  num_clients: int = 10  # sites in the federation
  min_examples: int = 8  # floor per client; fewer is an error
  instruction_length: int = 16  # tokens of the instruction, padded or cut
  target_length: int = 44  # tokens of the caption or answer, padded or cut
  caption_instruction: str = "describe the picture ."  # asked of every image without a question


@dataclass
class Backbone:
  """The frozen models: Hugging Face checkpoint folders, or the pair shipped in the package."""

  clip: str = "tiny"  # folder, or "tiny"
  t5: str = "tiny"  # folder, or "tiny"
  dtype: str = "float32"  # compute dtype: float32 | bfloat16


@dataclass
class Prompter:
  """The trainable part (BUILD.md, "Method")."""

  local: bool = True  # each client has a prompt of its own, which never leaves it
  local_drop: float = 0.5  # share of rows trained without it, as the global prompter is used

  tokens: int = 16  # tokens per prompt (p)
  pool: int = 8  # candidate prompts in the pool (m)
  pool_mode: str = "adaptive"  # adaptive | fixed | dense
  pool_mass: float = 0.98  # adaptive: smallest k whose mass reaches this
  k_min: int = 1  # fewest prompts chosen for a sample
  k_max: int = 4  # most prompts chosen for a sample; the k of "fixed"
  key_dim: int = 64  # width of keys and query (h)
  temperature: float = 0.1  # of the softmax over cosine similarities
  fusion: str = "dynamic"  # static | learned | dynamic
  fusion_weights: tuple[float, ...] = ()  # static: one per source; () = equal
  fusion_hidden: int = 64  # width of the fusion network
  init: str = "vocabulary"  # prompt tokens start as: random | vocabulary (words' embeddings) | text
  init_text: str = ""  # "text": as embeddings of these words: of classes, or an instruction
  mapper: str = "linear"  # linear | mlp | pooled:N (joint feature -> N tokens)
  mapper_hidden: int = 256  # width of the mlp mapper
  patch_pool: int = 2  # average k x k neighbouring patches before the mapper
  see_image: bool = True  # False: the image-blind baseline; all image features are zero


@dataclass
class Optim:
  """Local optimisation at a client."""

  batch_size: int = 16  # examples a local step
  local_steps: int = 16  # steps a client trains each round
  prompt_lr: float = 3e-1  # Adam; prompts and the mapper's place embedding
  local_lr: float = 3e-1  # Adam; the client's own prompt
  key_lr: float = 1e-2  # Adam; the pool's keys and query
  fusion_lr: float = 1e-2  # Adam; fusion, and the contrastive projection
  mapper_lr: float = 1e-2  # Adam; the mapper's layers
  schedule: str = "cosine"  # constant | cosine, over all local steps of all rounds
  final_lr: float = 0.1  # cosine: fraction of the peak reached in the last round
  warmup_rounds: float = 1.0  # rounds of linear warm-up
  b1: float = 0.9  # Adam's first-moment decay
  b2: float = 0.99  # Adam's second-moment decay
  weight_decay: float = 0.0  # decoupled, per step and unit of learning rate
  clip_norm: float = 1.0  # global gradient norm bound
  label_smoothing: float = 0.0  # cross-entropy's epsilon
  target_cuts: tuple[float, ...] = (0.2, 0.5)  # of target_length, each compiled: ends of short ones
  balance: float = 0.01  # weight of the pool's load-balancing loss
  contrast: float = 0.0  # weight of the contrastive loss; 0 = none
  contrast_temperature: float = 0.1  # of its softmax over cosine similarities
  contrast_warmup: float = 1.0  # rounds over which its weight grows from 0


@dataclass
class Uplink:
  """What a client sends of its update: rows of leaves (of prompts: tokens) of most energy."""

  select: str = "energy"  # energy | ratio | dense (all)
  energy: float = 0.6  # "energy": of each leaf, the fewest rows with this share of its energy
  ratio: float = 0.35  # "ratio": of each leaf, this share of its rows
  error_feedback: str = "resume"  # what was not sent: resume (trained on from) | add | none (lost)
  weighing: str = "coverage"  # a row is averaged over: coverage (who sent it) | cohort (all)


@dataclass
class Fed:
  """The federation."""

  rounds: int = 30  # rounds in all; 0 scores the untrained prompter (zero-shot)
  clients_per_round: int = 10  # selected each round, seeded by (seed, round)
  cohort: int = 10  # clients that one step trains together; memory grows with it
  selection: str = "uniform"  # uniform | size | round_robin | power_of_choice (by last loss)
  min_replies: int = 1  # valid replies without which a round fails
  retries: int = 1  # times that a failed round is tried again before the run stops
  deadline: float = 3600.0  # seconds after which a round closes without late replies (networked)
  wait: float = 600.0  # seconds to wait for sites: at the start all, later min_replies (networked)
  max_examples: int = 10_000_000  # that a site may claim: its weight in the average
  max_update_norm: float = 0.0  # largest L2 norm of a site's update; 0 = any
  strategy: str = "fedavg"  # a name in federation/strategies, with options: "fedadam:tau=0.01"
  share: str = "all"  # all | none: every client trains alone (the local-only baseline)
  newcomers: int = 0  # sites kept out of all rounds, to be scored as new ones after the last


@dataclass
class Eval:
  """Evaluation of the global prompter, and of each client's with its own prompt."""

  every: int = 10  # rounds between evaluations on `val`; the last round always is one
  val_examples: int = 200  # of the validation split; 0 = all
  test_examples: int = 0  # of the test split, scored after the last round; 0 = all
  batch_size: int = 96  # examples decoded at a time
  max_tokens: int = 44  # longest generated text, end token included
  min_tokens: int = 0  # fewest tokens before the end token
  beams: int = 1  # texts followed at a time; 1 = greedy
  length_penalty: float = 1.0  # beams > 1: scores are divided by length**this
  no_repeat_ngram: int = 0  # no so many tokens come twice in a row; 0 = any may
  ema: float = 0.0  # decay a round of the averaged prompter that is scored; 0 = the newest itself
  common_examples: int = 100  # of the test split, answered by every client's own prompter


@dataclass
class Experiment:
  """One run, whole."""

  seed: int = 0  # every random number of the run follows from it
  data: Data = field(default_factory=Data)
  backbone: Backbone = field(default_factory=Backbone)
  prompter: Prompter = field(default_factory=Prompter)
  optim: Optim = field(default_factory=Optim)
  fed: Fed = field(default_factory=Fed)
  uplink: Uplink = field(default_factory=Uplink)
  eval: Eval = field(default_factory=Eval)


def to_dict(config: Experiment) -> dict[str, Any]:
  """The config as plain nested values, as config.json stores it."""
  return json.loads(json.dumps(dataclasses.asdict(config)))


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
  """Names the leaves in which two nested dicts differ, as `field: old -> new`."""
  lines = []
  for key in sorted(old.keys() | new.keys()):
    a, b = old.get(key, "(absent)"), new.get(key, "(absent)")
    if isinstance(a, dict) and isinstance(b, dict):
      lines += differences(a, b, f"{prefix}{key}.")
    elif a != b:
      lines.append(f"{prefix}{key}: {a!r} -> {b!r}")
  return lines


def digest(value: Any) -> str:
  """A short hash of any JSON value; equal values have equal digests."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def choice(name: str, value: str, allowed: tuple[str, ...]) -> str:
  """Returns `value` if it is one of `allowed`.

  Raises:
    UserError: otherwise, naming the field and what it may be.
  """
  if value not in allowed:
    raise UserError(f"{name}: expected one of {', '.join(allowed)}; got {value!r}")
  return value
