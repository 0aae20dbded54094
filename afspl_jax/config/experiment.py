"""Every setting of an experiment: one field a line, with its unit and meaning.

An experiment is a file in `configs/` whose `get_config()` returns an `Experiment`.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from afspl_jax.errors import SettingError


@dataclass
class Data:
  """Where the examples come from and how they are split over clients."""

  source: str = "shapes"  # a name in data/sources.py; "tfds:NAME" of tensorflow-datasets
  dir: str = ""  # where the data set lies or is prepared; "" = tensorflow-datasets' default
  fields: str = ""  # of "tfds:NAME": what is where, such as "image=image,captions=caption/text"
  max_bad: int = 0  # malformed records that may be left out
  partition: str = "natural"  # a name in data/partitions/, or manifest:PATH of a partition.json
  dirichlet_alpha: float = 0.5  # dirichlet, quantity: concentration; small = clients differ more
  categories: int = 2  # pathological: labels that a client has images of
  capacity_ratio: float = 10.0  # capacity: how much more the ablest client has than the least able
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

  select: str = "energy"  # energy | ratio | shared (all send the same, drawn by lot) | dense (all)
  energy: float = 0.6  # "energy": of each leaf, the fewest rows with this share of its energy
  ratio: float = 0.35  # "ratio", "shared": of each leaf, this share of its rows
  error_feedback: str = "resume"  # what was not sent: resume (trained on from) | add | none (lost)
  weighing: str = "coverage"  # a row is averaged over: coverage (who sent it) | cohort (all)


@dataclass
class Fed:
  """The federation."""

  rounds: int = 30  # rounds in all; 0 scores the untrained prompter (zero-shot)
  clients_per_round: int = 10  # selected each round, seeded by (seed, round)
  cohort: int = 10  # clients that one step trains together; memory grows with it
  selection: str = "uniform"  # uniform | size | round_robin | power_of_choice (by last loss)
  # | poisson (each by a secret coin; clients_per_round is the mean)
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
class Privacy:
  """Differential privacy of a client, and of an example at its client (docs/security.md)."""

  dp: str = "none"  # none | central (the server adds noise) | local (every client does)
  epsilon: float = 0.0  # budget at `delta`; the run ends before it is exceeded; 0 = none
  delta: float = 1e-5  # well below 1 / data.num_clients
  noise: float = 0.0  # standard deviation over `clip`; 0 = the least that pays for all rounds
  clip: float = 1.0  # largest L2 norm of a client's update; "adaptive": in the first round
  clipping: str = "fixed"  # fixed | adaptive (towards `clip_quantile` of the norms)
  clip_quantile: float = 0.5  # adaptive: share of updates to leave whole
  clip_lr: float = 0.2  # adaptive: step of the logarithm of the bound
  example_clip: float = 0.0  # DP-SGD: largest L2 norm of an example's gradient; 0 = no DP-SGD
  example_noise: float = 1.0  # DP-SGD: standard deviation over `example_clip`


@dataclass
class Secure:
  """Secure aggregation: the server learns the sum of the updates and no client's own."""

  aggregation: bool = False  # on or off
  threshold: float = 0.6  # share of a client's neighbours that must stay until a round's end
  neighbours: int = 0  # others that a client shares masks with; 0 = as many as safety asks for
  bits: int = 20  # a number is sent as one of 2**bits steps from -privacy.clip to privacy.clip


@dataclass
class Attack:
  """Sites made hostile, to see what a method withstands; for studies in one process only."""

  kind: str = "none"  # none | sign_flip | scale | label_flip (federation/hostile.py)
  share: float = 0.0  # of the sites that take part, drawn by lot from the seed, rounded down
  scale: float = 10.0  # "scale": what a hostile site multiplies its update by


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
  privacy: Privacy = field(default_factory=Privacy)
  secure: Secure = field(default_factory=Secure)
  attack: Attack = field(default_factory=Attack)
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
    SettingError: otherwise, naming the field and what it may be.
  """
  if value not in allowed:
    raise SettingError(f"{name}: expected one of {', '.join(allowed)}; got {value!r}")
  return value


def expect(name: str, value: Any, holds: bool, expected: str) -> None:
  """Refuses a setting's value unless `holds`.

  Raises:
    SettingError: naming the field, what it may be, and what it is.
  """
  if not holds:
    raise SettingError(f"{name}: expected {expected}; got {value!r}")
