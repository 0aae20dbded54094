"""The prompter in PyTorch, for one client or several at once; all PyTorch sides train it.

It computes what `afspl_jax.models.prompter` does, for the settings of the cases. If leaves have a
leading axis `c` of clients, then so have inputs and results, and each client uses its own leaves.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from afspl_jax.config import experiment as settings
from afspl_jax.training.optimizer import GROUPS
from benchmarks.sides.side import Leaves


class Prompted(NamedTuple):
  """The prompter's output for a batch."""

  prefix: Float[Tensor, "*c b x d"]  # [F ; V], the vectors before the instruction
  balance: Float[Tensor, "*c"]  # the pool's load-balancing loss


class Linear(nn.Module):
  """`x @ kernel + bias`, with the names and layout of Flax."""

  def __init__(self, leaves: Leaves):
    super().__init__()
    self.kernel, self.bias = _parameter(leaves["kernel"]), _parameter(leaves["bias"])

  def forward(self, x: Float[Tensor, "*c b i"]) -> Float[Tensor, "*c b o"]:
    """Maps the last axis; there may be more row axes than `b`."""
    # One product per client: broadcasting the kernel over more axes would copy it.
    rows = x.flatten(self.kernel.ndim - 2, -2)
    return (rows @ self.kernel + self.bias.unsqueeze(-2)).view(*x.shape[:-1], -1)


class Pool(nn.Module):
  """Prompts with keys; see `afspl_jax.models.prompter.pool.PromptPool`."""

  def __init__(self, config: settings.Prompter, leaves: Leaves):
    super().__init__()
    self._config = config
    self.prompts, self.keys = _parameter(leaves["prompts"]), _parameter(leaves["keys"])
    self.query = Linear(leaves["query"])

  def forward(
    self, features: Float[Tensor, "*c b two_f"]
  ) -> tuple[Float[Tensor, "*c b m"], Float[Tensor, "*c"]]:
    """Returns the weights of the prompts, 0 if not chosen, and the load-balancing loss."""
    similarity = _unit(self.query(features)) @ _unit(self.keys).mT
    probabilities = (similarity / self._config.temperature).softmax(-1)
    weights = self._choose(probabilities)
    used, probable = weights.detach().mean(-2), probabilities.mean(-2)
    return weights, weights.shape[-1] * (used * probable).sum(-1)

  def _choose(self, probabilities: Float[Tensor, "*c b m"]) -> Float[Tensor, "*c b m"]:
    config = self._config
    if config.pool_mode == "dense":
      return probabilities
    top, index = probabilities.topk(config.k_max)
    if config.pool_mode == "adaptive":
      mass_before = top.cumsum(-1) - top
      first = torch.arange(config.k_max, device=top.device) < config.k_min
      top = torch.where((mass_before < config.pool_mass) | first, top, 0.0)
    top = top / top.sum(-1, keepdim=True)
    return torch.zeros_like(probabilities).scatter(-1, index, top)


class Fusion(nn.Module):
  """Weights of the sources per row; see `afspl_jax.models.prompter.fusion.Fusion`, "dynamic"."""

  def __init__(self, leaves: Leaves):
    super().__init__()
    self.hidden, self.score = Linear(leaves["hidden"]), Linear(leaves["score"])

  def forward(
    self, features: Float[Tensor, "*c b two_f"], available: Bool[Tensor, "*c b s"]
  ) -> Float[Tensor, "*c b s"]:
    """Returns weights that sum to 1 over the available sources, and are 0 elsewhere."""
    scores = self.score(F.gelu(self.hidden(features), approximate="tanh"))
    return scores.masked_fill(~available, -torch.inf).softmax(-1)


class Mapper(nn.Module):
  """Maps patches to T5's width; see `afspl_jax.models.prompter.mapper.VisualMapper`, "linear"."""

  def __init__(self, patch_pool: int, leaves: Leaves):
    super().__init__()
    self._pool = patch_pool
    self.project, self.place = Linear(leaves["project"]), _parameter(leaves["place"])

  def forward(self, tokens: Float[Tensor, "*c b v w"]) -> Float[Tensor, "*c b tokens d"]:
    """Averages squares of patches, normalises and projects them, and adds position vectors."""
    patches = tokens[..., 1:, :]
    if self._pool > 1:
      side = round(patches.shape[-2] ** 0.5) // self._pool
      grid = patches.unflatten(-2, (side, self._pool, side, self._pool))
      patches = grid.mean((-4, -2)).flatten(-3, -2)
    x = F.layer_norm(patches, patches.shape[-1:], eps=1e-6)
    return self.project(x) + self.place.unsqueeze(-3)


class Local(nn.Module):
  """The local prompt."""

  def __init__(self, leaves: Leaves):
    super().__init__()
    self.prompt = _parameter(leaves["prompt"])


class Prompter(nn.Module):
  """Turns CLIP features of images and instructions into soft prompts for T5.

  Args:
    config: the experiment's config.
    embedding: T5's embedding matrix, which sets the scale of the prompts.
    leaves: named as in `models.prompter.Prompter`; parameters have the same names.

  Raises:
    NotImplementedError: a setting that no case uses.
    ValueError: unknown or missing leaves.
  """

  def __init__(self, config: settings.Experiment, embedding: Float[Tensor, "n d"], leaves: Leaves):
    super().__init__()
    _check(config)
    self._scale = embedding.detach().square().mean().sqrt().item()
    self.pool = Pool(config.prompter, leaves["pool"])
    self.visual_prompt = _parameter(leaves["visual_prompt"])
    self.textual_prompt = _parameter(leaves["textual_prompt"])
    self.fusion = Fusion(leaves["fusion"])
    self.mapper = Mapper(config.prompter.patch_pool, leaves["mapper"])
    self.local = Local(leaves["local"])
    ours, theirs = {name for name, _ in self.named_parameters()}, set(_names(leaves))
    if ours != theirs:
      raise ValueError(f"leaves: expected {sorted(ours)}; got {sorted(theirs)}")

  def forward(
    self,
    tokens: Float[Tensor, "*c b v w"],
    image: Float[Tensor, "*c b f"],
    text: Float[Tensor, "*c b f"],
    personal: Bool[Tensor, "*c b"],
  ) -> Prompted:
    """Computes the prompts of a batch; arguments as in `afspl_jax.types.Batch`."""
    features = torch.cat([_unit(image), _unit(text)], -1)
    chosen, balance = self.pool(features)
    always = torch.ones_like(personal)
    fusion = self.fusion(features, torch.stack([always, always, always, personal], -1))
    # Pool and fusion are both weighted sums of prompts: one product computes both.
    same_for_all = (self.visual_prompt, self.textual_prompt, self.local.prompt)
    prompts = torch.cat([self.pool.prompts, torch.stack(same_for_all, -3)], -3)
    weights = torch.cat([fusion[..., :1] * chosen, fusion[..., 1:]], -1)
    prompt = (weights @ prompts.flatten(-2)).unflatten(-1, prompts.shape[-2:])
    return Prompted(self._scale * torch.cat([prompt, self.mapper(tokens)], -2), balance)

  def leaves(self) -> dict[str, Any]:
    """Returns the parameters as nested dicts of arrays, as the constructor takes them."""
    out: dict[str, Any] = {}
    for name, value in self.named_parameters():
      *folders, leaf = name.split(".")
      place = out
      for folder in folders:
        place = place.setdefault(folder, {})
      place[leaf] = value.detach().numpy().copy()
    return out


def parameter_groups(prompter: Prompter, config: settings.Optim) -> list[dict[str, Any]]:
  """Returns the parameter groups for `torch.optim.AdamW`, one per learning rate."""
  rates = {
    "local": config.local_lr,
    "prompts": config.prompt_lr,
    "keys": config.key_lr,
    "fusion": config.fusion_lr,
    "mapper": config.mapper_lr,
  }
  groups = {name: {"params": [], "lr": rate} for name, rate in rates.items()}
  for name, value in prompter.named_parameters():
    path = name.replace(".", "/")
    group = next(group for group, prefixes in GROUPS.items() if path.startswith(prefixes))
    groups[group]["params"].append(value)
  return list(groups.values())


def _parameter(leaf: np.ndarray) -> nn.Parameter:
  return nn.Parameter(torch.tensor(leaf))


def _names(leaves: Leaves, folder: str = "") -> list[str]:
  names = []
  for name, value in leaves.items():
    inner = isinstance(value, Mapping)
    names += _names(value, f"{folder}{name}.") if inner else [folder + name]
  return names


def _unit(x: Float[Tensor, "*b h"]) -> Float[Tensor, "*b h"]:
  return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-12)


def _check(config: settings.Experiment) -> None:
  prompter, optim = config.prompter, config.optim
  supported = {
    "prompter.fusion": (prompter.fusion, "dynamic"),
    "prompter.mapper": (prompter.mapper, "linear"),
    "prompter.local": (prompter.local, True),
    "prompter.see_image": (prompter.see_image, True),
    "optim.schedule": (optim.schedule, "constant"),
    "optim.warmup_rounds": (optim.warmup_rounds, 0.0),
    "optim.label_smoothing": (optim.label_smoothing, 0.0),
    "optim.contrast": (optim.contrast, 0.0),
  }
  for name, (value, only) in supported.items():
    if value != only:
      raise NotImplementedError(
        f"{name}: expected {only!r}, which the PyTorch sides implement; got {value!r}"
      )
  if prompter.pool_mode not in ("adaptive", "fixed", "dense"):
    raise NotImplementedError(
      f"prompter.pool_mode: expected adaptive, fixed or dense; got {prompter.pool_mode!r}"
    )
  if prompter.patch_pool not in (1, 2):
    raise NotImplementedError(f"prompter.patch_pool: expected 1 or 2; got {prompter.patch_pool}")
