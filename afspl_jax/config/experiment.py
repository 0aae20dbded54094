"""Every setting of an experiment: one field with its default, meaning, unit and legal values.

Those of the data are in data_settings.py.

An experiment is a file in `configs/` whose `get_config()` returns an `Experiment`.
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from afspl_jax.config.data_settings import Data
from afspl_jax.config.registry import STRATEGIES
from afspl_jax.config.setting import group, setting


@dataclass
class Backbone:
  """The two frozen models: Hugging Face checkpoints, or the pair in this package."""

  clip: str = setting("tiny", "CLIP: a folder, a Hugging Face name, or tiny")
  t5: str = setting("tiny", "T5: a folder, a Hugging Face name, or tiny")
  dtype: str = setting(
    "float32", "type to compute in", choices=("float32", "bfloat16"), agreed="always"
  )


@dataclass
class Prompter:
  """The trainable part: prompts, their selection and fusion, and the visual mapper."""

  local: bool = setting(True, "each client has a local prompt that never leaves it")
  local_drop: float = setting(
    0.5, "share of training examples without the local prompt, as at new clients", ge=0, lt=1
  )
  tokens: int = setting(16, "length of a prompt (p)", "tokens", ge=1)
  pool: int = setting(8, "candidate prompts in the pool (m)", "prompts", ge=1)
  pool_mode: str = setting(
    "adaptive",
    "prompts that a sample gets: enough for pool_mass, k_max, or all",
    choices=("adaptive", "fixed", "dense"),
  )
  pool_mass: float = setting(0.98, "adaptive: probability that the chosen prompts reach", gt=0)
  k_min: int = setting(1, "adaptive: fewest prompts for a sample", "prompts", ge=1)
  k_max: int = setting(4, "adaptive: most prompts for a sample; fixed: all", "prompts", ge=1)
  routing: str = setting(
    "auto",
    "sites: the image finds a prompt where the local one is not used; auto: if privacy allows",
    choices=("auto", "none", "sites"),
  )
  site_prompts: int = setting(
    10, "prompts of sites; if there are more sites, similar ones share one", "prompts", ge=1
  )
  key_dim: int = setting(64, "width of keys and query (h)", "features", ge=1)
  temperature: float = setting(0.1, "temperature of the softmax over query-key similarities", gt=0)
  fusion: str = setting(
    "dynamic",
    "weights of the prompt sources: given, trained, or computed for each sample",
    choices=("static", "learned", "dynamic"),
  )
  fusion_weights: tuple[float, ...] = setting(
    (), "static: a weight for each source; empty: equal weights", ge=0
  )
  fusion_hidden: int = setting(64, "dynamic: width of the network's hidden layer", "units", ge=1)
  init: str = setting(
    "vocabulary",
    "start of the prompts: noise, embeddings of random words, or those of init_text",
    choices=("random", "vocabulary", "text"),
  )
  init_text: str = setting("", "words for init=text: names of classes, or an instruction")
  mapper: str = setting(
    "linear",
    "from CLIP's patches to T5; adapter:N: linear and a bottleneck; pooled:N: of the joint feature",
    choices=("linear", "mlp", "adapter:N", "pooled:N"),
  )
  mapper_hidden: int = setting(256, "mlp: width of the mapper's hidden layer", "units", ge=1)
  patch_pool: int = setting(
    2, "side of the squares of patches that are averaged first", "patches", ge=1
  )
  see_image: bool = setting(True, "False: all image features are zero, a baseline")


@dataclass
class Optim:
  """Local training at a client, by Adam."""

  batch_size: int = setting(16, "examples in a local step", "examples", ge=1)
  local_steps: int = setting(4, "steps of a client in each round", "steps", ge=1)
  local_only: int = setting(
    0,
    "first steps of a round, for local leaves alone; the others train the shared alone; 0: no such",
    "steps",
    ge=0,
  )
  prompt_lr: float = setting(3e-1, "learning rate of prompts and of place embeddings", gt=0)
  local_lr: float = setting(3e-1, "learning rate of the local prompt", gt=0)
  key_lr: float = setting(1e-2, "learning rate of the pool's keys and query", gt=0)
  fusion_lr: float = setting(1e-2, "learning rate of fusion and contrastive projection", gt=0)
  mapper_lr: float = setting(1e-2, "learning rate of the mapper's layers", gt=0)
  schedule: str = setting(
    "cosine", "learning rates over all steps of all rounds", choices=("constant", "cosine")
  )
  final_lr: float = setting(0.1, "cosine: last learning rate over the peak", ge=0)
  warmup_rounds: float = setting(4.0, "linear warm-up of the learning rates", "rounds", ge=0)
  b1: float = setting(0.9, "decay of the first moment", ge=0, lt=1)
  b2: float = setting(0.99, "decay of the second moment", ge=0, lt=1)
  weight_decay: float = setting(0.03, "decoupled weight decay, times the learning rate", ge=0)
  clip_norm: float = setting(1.0, "largest norm of a gradient", gt=0)
  label_smoothing: float = setting(0.0, "epsilon of the cross-entropy", ge=0, le=1)
  target_cuts: tuple[float, ...] = setting(
    (0.2, 0.5), "shorter targets to compile for, as shares of data.target_length"
  )
  balance: float = setting(0.01, "weight of the pool's load-balancing loss", ge=0)
  contrast: float = setting(0.0, "weight of the contrastive loss; 0: none", ge=0)
  contrast_temperature: float = setting(0.1, "temperature of the contrastive loss", gt=0)
  contrast_warmup: float = setting(1.0, "time in which `contrast` grows from 0", "rounds", ge=0)


@dataclass
class Uplink:
  """What a client sends of its update: rows of leaves; a row of a prompt is a token."""

  select: str = setting(
    "energy",
    "rows to send: most energy up to a share, most energy, random but the same of all, or all",
    choices=("energy", "ratio", "shared", "dense"),
  )
  energy: float = setting(0.4, "energy: share of a leaf's energy to reach", gt=0, le=1)
  ratio: float = setting(0.35, "ratio, shared: share of a leaf's rows", gt=0, le=1)
  error_feedback: str = setting(
    "resume",
    "rows that were not sent: train on from them, add them to the next update, or drop them",
    choices=("resume", "add", "none"),
  )
  weighing: str = setting(
    "coverage",
    "average of a row: over the clients that sent it, or over all of the round",
    choices=("coverage", "cohort"),
  )


@dataclass
class Fed:
  """Rounds, and the clients in them."""

  rounds: int = setting(
    48, "training rounds; 0 scores the untrained prompter", "rounds", ge=0, agreed="always"
  )
  clients_per_round: int = setting(
    10, "clients selected in each round; poisson: their mean number", "clients", ge=1, le=2**16
  )
  cohort: int = setting(10, "clients trained at once; memory grows with it", "clients", ge=1)
  selection: str = setting(
    "uniform",
    "who trains in a round; power_of_choice goes by the last loss, poisson is secret",
    choices=("uniform", "size", "round_robin", "power_of_choice", "poisson"),
  )
  min_replies: int = setting(
    1,
    "fewest valid replies; a round with fewer fails. With secure.aggregation a site checks it, too",
    "replies",
    ge=1,
  )
  retries: int = setting(1, "new attempts at a failed round before the run stops", "times", ge=0)
  deadline: float = setting(
    3600.0, "network: a round closes without later replies", "seconds", gt=0
  )
  wait: float = setting(
    600.0, "network: wait for all sites at the start, for min_replies later", "seconds", ge=0
  )
  max_examples: int = setting(
    10_000_000, "most examples that a site may report, its weight", "examples", ge=1, le=2**29
  )  # up to 2**29 products with float32 are exact
  max_update_norm: float = setting(0.0, "largest L2 norm of an update; 0: any", ge=0)
  strategy: str = setting(
    "fedavg",
    "how updates are combined; options follow a colon, as in fedadam:tau=0.01",
    plugins=STRATEGIES,
    agreed="always",
  )
  share: str = setting(
    "all", "none: every client trains alone, a baseline", choices=("all", "none"), agreed="always"
  )
  local_leaves: str = setting(
    "",
    "leaves that stay at each site, as the local prompt does: patterns, such as mapper/*,fusion/*",
    agreed="always",
  )
  ditto: float = setting(
    0.0, "how strongly each site's personal copy is held near the global model; 0: no copies", ge=0
  )
  newcomers: int = setting(0, "sites that join no round and are scored at the end", "sites", ge=0)
  newcomer_examples: int = setting(0, "most examples of a newcomer; 0: all", "examples", ge=0)
  newcomer_steps: int = setting(16, "local steps of a newcomer before it is scored", "steps", ge=1)
  finetune: int = setting(
    0,
    "local rounds of every site after the last round, from the global model; 0: none",
    "rounds",
    ge=0,
  )
  compare: str = setting(
    "none",
    "baselines that are trained beside: every site alone, one model of all sites' data, or both",
    choices=("none", "alone", "pooled", "both"),
  )


@dataclass
class Privacy:
  """Differential privacy for clients, and for single examples (docs/security.md)."""

  dp: str = setting(
    "none", "who adds noise: nobody, server or each client", choices=("none", "central", "local")
  )
  epsilon: float = setting(0.0, "budget; the run ends before exceeding it; 0: none", ge=0)
  delta: float = setting(1e-5, "delta of the budget; well below 1 / data.num_clients", gt=0)
  noise: float = setting(
    0.0, "noise multiplier: standard deviation over clip; 0: least for epsilon", ge=0
  )
  clip: float = setting(1.0, "largest L2 norm of an update; adaptive: in the first round", gt=0)
  clipping: str = setting(
    "fixed", "adaptive: clip moves towards clip_quantile", choices=("fixed", "adaptive")
  )
  clip_quantile: float = setting(0.5, "adaptive: share of updates below the bound", gt=0, lt=1)
  clip_lr: float = setting(0.2, "adaptive: step of the bound's logarithm", ge=0)
  example_clip: float = setting(0.0, "DP-SGD: largest norm of an example's gradient; 0: off", ge=0)
  example_noise: float = setting(1.0, "DP-SGD: standard deviation over example_clip", ge=0)
  example_epsilon: float = setting(0.0, "DP-SGD: budget of each client; 0: none", ge=0)


@dataclass
class Secure:
  """Secure aggregation: the server learns the sum of the updates, and no single update."""

  aggregation: bool = setting(False, "turns secure aggregation on")
  threshold: float = setting(
    0.6, "share of a client's neighbours that must stay until the round ends", gt=0.5, lt=1
  )  # at 0.5 a server could ask two halves of the neighbours for two secrets of one client
  neighbours: int = setting(
    0, "clients that a client shares masks with; 0: as many as needed", "clients", ge=0
  )
  bits: int = setting(20, "size of a number between -clip and clip", "bits", ge=8, le=32)


@dataclass
class Attack:
  """Malicious clients, to measure what a strategy withstands; in one process only."""

  kind: str = setting(
    "none",
    "negate the update, scale it, or train on wrong targets",
    choices=("none", "sign_flip", "scale", "label_flip"),
  )
  share: float = setting(0.0, "share of clients that are malicious, rounded down", ge=0, lt=1)
  scale: float = setting(10.0, "scale: factor of the update", gt=0)


@dataclass
class Eval:
  """How the global and the personalised models are scored."""

  every: int = setting(12, "rounds between validations; the last round has one too", "rounds", ge=1)
  val_examples: int = setting(200, "size of a validation; 0 or less: all", "examples")
  test_examples: int = setting(0, "size of the test at the end; 0 or less: all", "examples")
  batch_size: int = setting(96, "examples decoded at a time", "examples", ge=1)
  max_tokens: int = setting(44, "longest text, with the end token", "tokens", ge=1)
  min_tokens: int = setting(0, "shortest text, without the end token", "tokens", ge=0)
  beams: int = setting(1, "texts that a search follows; 1: greedy", "texts", ge=1)
  length_penalty: float = setting(1.0, "beams > 1: scores are divided by length**this")
  no_repeat_ngram: int = setting(0, "no sequence this long comes twice; 0: any may", "tokens", ge=0)
  ema: float = setting(
    0.0, "scores an average of rounds with this decay; 0: the newest", ge=0, lt=1
  )
  common_examples: int = setting(
    100, "test examples for every personalised model; 0 or less: all", "examples"
  )


@dataclass
class Experiment:
  """One run, whole."""

  seed: int = setting(0, "decides every random number but the secret ones", ge=0, agreed="always")
  data: Data = group(Data)
  backbone: Backbone = group(Backbone)
  prompter: Prompter = group(Prompter, agreed="always")
  optim: Optim = group(Optim, agreed="always")
  fed: Fed = group(Fed)
  uplink: Uplink = group(Uplink, agreed="always")
  privacy: Privacy = group(Privacy, agreed="always")
  secure: Secure = group(Secure, agreed="always")
  attack: Attack = group(Attack)
  eval: Eval = group(Eval)


def to_dict(config: Experiment) -> dict[str, Any]:
  """The config as plain nested values, as config.json stores it."""
  return json.loads(json.dumps(dataclasses.asdict(config)))
